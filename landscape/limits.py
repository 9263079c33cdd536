"""The largest numbers that a command or a manifest accepts. Imports nothing.

Each is far above any real measurement, so that a larger number is a typing error. Without the
limit, it would fill memory, or run for years, before it is noticed. The published protocol has 200
batches and 5 eigenvalues; models of open_clip and timm take up to 1024 pixels a side.
"""

MAX_INTEGER = 2**63 - 1
# Largest seed of NumPy's global generator, which open_clip_train seeds.
MAX_NUMPY_SEED = 2**32 - 1

# Pixels of a side.
MAX_SIDE = 4096
MAX_BATCHES = 1_000_000
MAX_EIGENVALUES = 10_000
MAX_MATVECS = 1_000_000
MAX_PROBES = 100_000
MAX_RESAMPLES = 1_000_000
MAX_WEIGHT_DECAY = 1e6
MAX_CLASSES = 10**7
# Largest number of an epoch in a manifest, which may count steps; then that of epochs to train.
MAX_EPOCH = 10**9
MAX_TRAINED_EPOCHS = 100_000
# Layers of a tower; building more takes minutes before memory runs out.
MAX_LAYERS = 4096
# Points along an axis of a loss surface.
MAX_POINTS = 1001
# A dense matrix with this number of rows takes 0.8 GB in double precision, and computing its
# eigenvalues twice that.
MAX_DENSE = 10_000
# OpenMP starts the requested number of threads, and ends the process if it cannot.
MAX_THREADS = 1024
# Processes that load pictures.
MAX_WORKERS = 256
# Factor of cosines; with larger factors the softmax is 1 at the largest and 0 elsewhere.
MAX_LOGIT_SCALE = 1e6
# Seconds that a process waits for another: a week.
MAX_SHARD_TIMEOUT = 604_800.0
