"""The largest numbers that a command or a manifest may be given. Imports nothing.

Each is far above what anybody measures, so that a larger one is a slip; it would fill memory, or run for years, before it is
noticed. The published protocol has 200 batches and 5 eigenvalues; models of open_clip and timm take up to 1024 pixels a side.
"""

MAX_INTEGER = 2**63 - 1
# Seeds that NumPy's global generator takes, which open_clip_train seeds.
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
# The number of an epoch in a manifest, where some write steps, and of those that a run is asked for.
MAX_EPOCH = 10**9
MAX_TRAINED_EPOCHS = 100_000
# Blocks of a tower; building more takes minutes before memory runs out.
MAX_LAYERS = 4096
# Along an axis of a loss surface.
MAX_POINTS = 1001
# A dense matrix of so many rows takes 0.8 GB in double precision, and its eigenvalues twice that.
MAX_DENSE = 10_000
# OpenMP starts as many threads as it is told, and ends the process where it cannot.
MAX_THREADS = 1024
# Processes that load pictures.
MAX_WORKERS = 256
# By which cosines are multiplied; the softmax of larger ones is the largest alone.
MAX_LOGIT_SCALE = 1e6
