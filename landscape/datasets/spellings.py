"""Names of small label sets, and other spellings of class names.

Other spellings are folder names of VISSL and labels of torchvision. A group begins with the name
that a prompt uses.
"""


def split_names(text: str) -> tuple[tuple[str, ...], ...]:
    """Split a list of class names into synonyms of each class.

    Classes are separated by commas, synonyms by slashes.
    """
    return tuple(tuple(name.strip() for name in entry.split("/")) for entry in text.split(","))


CIFAR10 = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
STL10 = "airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck"
DTD = (
    "banded, blotchy, braided, bubbly, bumpy, chequered, cobwebbed, cracked, crosshatched, "
    "crystalline, dotted, fibrous, flecked, freckled, frilly, gauzy, grid, grooved, honeycombed, "
    "interlaced, knitted, lacelike, lined, marbled, matted, meshed, paisley, perforated, pitted, "
    "pleated, polka-dotted, porous, potholed, scaly, smeared, spiralled, sprinkled, stained, "
    "stratified, striped, studded, swirly, veined, waffled, woven, wrinkled, zigzagged"
)
EUROSAT = (
    ("annual crop land", "AnnualCrop"),
    ("forest", "Forest"),
    ("brushland or shrubland", "HerbaceousVegetation"),
    ("highway or road", "Highway"),
    ("industrial buildings or commercial buildings", "Industrial", "industrial buildings"),
    ("pasture land", "Pasture"),
    ("permanent crop land", "PermanentCrop"),
    ("residential buildings or homes or apartments", "Residential", "residential buildings"),
    ("river", "River"),
    ("lake or sea", "SeaLake", "sea or lake"),
)
# The official meaning of each ClassId.
GTSRB = (
    "speed limit 20 km/h, speed limit 30 km/h, speed limit 50 km/h, speed limit 60 km/h, speed "
    "limit 70 km/h, speed limit 80 km/h, end of speed limit 80 km/h, speed limit 100 km/h, speed "
    "limit 120 km/h, no overtaking, no overtaking by lorries, right of way at the next crossing, "
    "priority road, give way, stop, no vehicles, no lorries, no entry, general danger, dangerous "
    "bend to the left, dangerous bend to the right, double bend, bumpy road, slippery road, road "
    "narrows on the right, road works, traffic lights, pedestrians, children crossing, bicycles "
    "crossing, ice or snow, wild animals crossing, end of all limits, turn right ahead, turn left "
    "ahead, ahead only, straight on or right, straight on or left, keep right, keep left, "
    "roundabout, end of no overtaking, end of no overtaking by lorries"
)
FER = (
    ("angry", "anger"),
    ("disgusted", "disgust"),
    ("fearful", "fear"),
    ("happy", "happiness"),
    ("neutral", "neutrality"),
    ("sad", "sadness"),
    ("surprised", "surprise"),
)
KITTI = (
    ("a photo i took with a car in the distance.", "above_20"),
    ("a photo i took with a car nearby.", "below_20"),
    ("a photo i took of a car on my left or right side.", "below_8"),
    ("a photo i took with no car.", "no_vehicle"),
)
DIGITS = "zero one two three four five six seven eight nine ten".split()
CLEVR = tuple((str(count), f"count_{count}", DIGITS[count]) for count in (10, 3, 4, 5, 6, 7, 8, 9))
CALTECH = (
    ("background", "BACKGROUND_Google"),
    ("off-center face", "Faces"),
    ("centered face", "Faces_easy"),
    ("leopard", "Leopards"),
    ("motorbike", "Motorbikes"),
    ("airplane", "airplanes"),
    ("side of a car", "car_side"),
    ("body of a cougar cat", "cougar_body"),
    ("face of a cougar cat", "cougar_face"),
    ("head of a crocodile", "crocodile_head"),
    ("head of a flamingo", "flamingo_head"),
    ("snoopy (cartoon beagle)", "snoopy"),
    ("water lilly", "water lily"),
    ("yin and yang symbol", "yin_yang"),
)
FLOWERS = (
    ("globe flower", "globe-flower"),
    ("pink and yellow dahlia", "pink-yellow dahlia?"),
    ("air plant", "ball moss"),
)
PCAM = (
    ("lymph node", "no_tumor", "0"),
    ("lymph node containing metastatic tumor tissue", "tumor", "1"),
)
MEMES = (("meme", "not_hateful", "0"), ("hatespeech meme", "hateful", "1"))
SST2 = (("negative", "0"), ("positive", "1"))


def first_of_each(groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Return the name of each class that a prompt uses."""
    return tuple(group[:1] for group in groups)
