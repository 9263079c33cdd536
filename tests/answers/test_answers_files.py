"""Files of answers: model-vs-human's and packed tables, made up here, read, refused and written."""

import gzip
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from landscape.answers import Answers, answers_of_model, read_answers, write_answers
from landscape.errors import AnswersError

HEADER = "subj,session,trial,rt,object_response,category,condition,imagename"
PERSON = "subj,Session,trial,rt,object_response,category,condition,imagename"


def lines(*rows, header=HEADER):
    return "\n".join([header, *rows]) + "\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def raw_data(tmp_path):
    """A folder as the toolbox has it: people and a model, texts of conditions as its files have
    them.
    """
    folder = tmp_path / "raw-data"
    rows = [
        "subject-01,1,1,0.93,bear,bear,0.70,0001_hp_s01_0.70_bear_10_n02134084_5274.png",
        "subject-01,1,2,NaN,na,cat,1,0002_hp_s01_1_cat_10_n02123394_133.png",
        "subject-01,1,3,0.61,oven,dog,inf,0003_hp_s01_inf_dog_10_n02088364_9.png",
    ]
    write(folder / "high-pass/high-pass_subject-01_session_1.csv", lines(*rows, header=PERSON))
    rows = [
        "my_net,1,1,NaN,cat,cat,1.0,0001_hp_dnn_1_cat_10_n02123394_133.png",
        "my_net,1,2,NaN,clock,bear,0.7,0002_hp_dnn_0.70_bear_10_n02134084_5274.png",
    ]
    write(folder / "high-pass/high-pass_my-net_session-1.csv", lines(*rows))
    write(
        folder / "edge/edge_subject-02_session_1.csv",
        lines("subject-02,1,1,1.2,cat,cat,0,0001_edg_s02_0_cat_00_cat3.png"),
    )
    write(folder / "edge/edge_my-net_session-1.csv", lines("my_net,1,1,NaN,knife,cat,NaN,cat3.png"))
    rows = ["my_net,1,1,NaN,car,car,true,0001_fc_dnn_true_car_35_n03100240_4.png"]
    rows += ["my_net,1,2,NaN,dog,dog,false,0002_fc_dnn_false_dog_35_n02090721_1.png"]
    write(folder / "false-colour/false-colour_my-net_session-1.csv", lines(*rows))
    rows = ["my_net,1,1,NaN,bird,dog,NaN,dog10-bird2.png"]
    write(folder / "cue-conflict/cue-conflict_my-net_session-1.csv", lines(*rows))
    rows = ["my_net,1,1,NaN,dog,dog,0,0001_ske_dnn_0_dog_00_dog-4581-sketch-16.png"]
    write(folder / "sketch/sketch_my-net_session-1.csv", lines(*rows))
    return folder


def entries(answers, **values):
    table = answers.table.astype(str)
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def test_a_toolbox_folder_is_read_whole(raw_data):
    answers = read_answers(raw_data)
    assert len(answers) == 11 and answers.models == ("my_net",)
    assert answers.datasets == ("high-pass", "false-colour", "sketch", "edge", "cue-conflict")
    person = entries(answers, dataset="high-pass", kind="human")
    assert person[["observer", "condition", "category", "image", "response"]].values.tolist() == [
        ["subject-01", "0.7", "bear", "n02134084_5274.png", "bear"],
        ["subject-01", "1.0", "cat", "n02123394_133.png", "na"],
        ["subject-01", "inf", "dog", "n02088364_9.png", "oven"],
    ]
    assert entries(answers, dataset="false-colour").condition.tolist() == ["True", "False"]
    assert entries(answers, dataset="edge").image.tolist() == ["cat3.png", "cat3.png"]
    assert set(entries(answers, dataset="edge").condition) == {"0"}
    assert entries(answers, dataset="cue-conflict").image.tolist() == ["dog10-bird2.png"]


def test_trials_put_the_same_picture_of_all_observers_into_one_column(raw_data):
    trials = read_answers(raw_data).trials["high-pass"]
    assert trials.images == ("n02088364_9.png", "n02123394_133.png", "n02134084_5274.png")
    # Conditions inf, 3.0, 1.5, 1.0, 0.7; dog is not shown to the model. 16 is "na".
    assert trials.condition.tolist() == [0, 3, 4]
    assert trials.human_responses.tolist() == [[14, 16, 1]] and trials.model_responses.tolist() == [
        [-1, 7, 9]
    ]
    assert trials.is_kept.tolist() == [False, True, True]
    assert trials.slices[:4] == [slice(0, 1), slice(1, 1), slice(1, 1), slice(1, 2)]
    assert str(trials.correct("model").tolist()) == "[[nan, 1.0, 0.0]]"
    assert trials.correct("human").tolist() == [[0, 0, 1]]


def test_single_files_several_sources_and_gzip_give_the_same_answers(raw_data, tmp_path):
    files = sorted(raw_data.rglob("*.csv"))
    whole = read_answers(raw_data)
    assert read_answers(reversed(files)).equals(whole)
    # The file's name is enough where the folder's says nothing, and the folder's where the file's
    # does not.
    moved = tmp_path / "elsewhere" / "high-pass_my-net_session-1.csv.gz"
    moved.parent.mkdir()
    moved.write_bytes(
        gzip.compress((raw_data / "high-pass/high-pass_my-net_session-1.csv").read_bytes())
    )
    other = write(
        tmp_path / "edge" / "answers.csv", (raw_data / "edge/edge_my-net_session-1.csv").read_text()
    )
    assert read_answers(moved).equals(whole.only(kind="model", datasets=["high-pass"]))
    assert read_answers(str(other)).equals(whole.only(kind="model", datasets=["edge"]))
    # A file named twice is read once.
    assert read_answers([files[0], raw_data]).equals(whole)


def test_packed_tables_of_people_and_models_are_read(raw_data, tmp_path):
    whole = read_answers(raw_data)
    people = lines(
        "high-pass,subject-01,1,1,bear,bear,0.7,0001_hp_s01_0.70_bear_10_n02134084_5274.png",
        "high-pass,subject-01,1,2,na,cat,1.0,0002_hp_s01_1_cat_10_n02123394_133.png",
        "high-pass,subject-01,1,3,oven,dog,inf,0003_hp_s01_inf_dog_10_n02088364_9.png",
        "edge,subject-02,1,1,cat,cat,0,0001_edg_s02_0_cat_00_cat3.png",
        header="dataset,subject,session,trial,response,category,condition,imagename",
    )
    models = lines(
        "my_net,high-pass,1.0,cat,n02123394_133.png,cat",
        "my_net,high-pass,0.7,bear,n02134084_5274.png,clock",
        "my_net,edge,0,cat,cat3.png,knife",
        header="model,dataset,condition,category,image,response",
    )
    (tmp_path / "human.csv.gz").write_bytes(gzip.compress(people.encode()))
    (tmp_path / "models.csv.gz").write_bytes(gzip.compress(models.encode()))
    read = read_answers([tmp_path / "human.csv.gz", tmp_path / "models.csv.gz"])
    assert read.equals(whole.only(datasets=["high-pass", "edge"]))


def test_the_table_of_answers_itself_can_be_written_and_read(raw_data, tmp_path):
    whole = read_answers(raw_data)
    whole.table.to_csv(tmp_path / "answers.csv", index=False)
    assert read_answers(tmp_path / "answers.csv").equals(whole)


def test_models_are_written_as_the_toolbox_writes_them(raw_data, tmp_path):
    whole = read_answers(raw_data)
    files = write_answers(whole, tmp_path / "out")
    # raw-data/<dataset>/<dataset>_<model-with-dashes>_session-1.csv
    assert [str(file.relative_to(tmp_path / "out")) for file in files] == [
        "cue-conflict/cue-conflict_my-net_session-1.csv",
        "edge/edge_my-net_session-1.csv",
        "false-colour/false-colour_my-net_session-1.csv",
        "high-pass/high-pass_my-net_session-1.csv",
        "sketch/sketch_my-net_session-1.csv",
    ]
    assert (tmp_path / "out/edge/edge_my-net_session-1.csv").read_text() == lines(
        "my_net,1,1,NaN,knife,cat,NaN,cat3.png"
    )
    assert files[3].read_text() == lines(
        "my_net,1,1,NaN,cat,cat,1.0,n02123394_133.png",
        "my_net,1,2,NaN,clock,bear,0.7,n02134084_5274.png",
    )
    assert files[4].read_text().splitlines()[1] == "my_net,1,1,NaN,dog,dog,0,dog-4581-sketch-16.png"
    assert read_answers(tmp_path / "out").equals(whole.only(kind="model"))
    # Writing again replaces, and leaves no temporary file.
    write_answers(whole, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == sorted(
        file.name for file in files
    )


def test_awkward_names_of_models_survive_writing_and_reading(tmp_path):
    names = ["ViT-B/32, 400M", 'say "cheese"', "épée_1"]
    # Category 5 is "bottle".
    parts = [model(name, responses=[5]) for name in names]
    answers = parts[0] + parts[1] + parts[2]
    write_answers(answers, tmp_path)
    read = read_answers(tmp_path)
    assert set(read.models) == set(names) and set(read.table.response) == {"bottle"}


def model(name, **changes):
    values = dict(images=["cat3.png"], conditions=["0"], categories=["cat"], responses=["dog"])
    return answers_of_model(name, "edge", **(values | changes))


def test_what_cannot_be_written_is_refused(raw_data, tmp_path):
    with pytest.raises(AnswersError, match="no answer of a model"):
        write_answers(read_answers(raw_data).only(kind="human"), tmp_path / "out")
    with pytest.raises(AnswersError, match="two models would have this file"):
        write_answers(model("a_b") + model("a-b"), tmp_path / "out")
    with pytest.raises(AnswersError, match="read as people"):
        write_answers(model("subject-01"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(AnswersError, match="cannot be written"):
        write_answers(model("a"), tmp_path / "file")


GOOD = "net,1,1,NaN,dog,dog,NaN,dog1.png"
WRONG = {
    "unknown response": (
        lines(GOOD, "net,1,2,NaN,zebra,cat,NaN,cat1.png"),
        ["row 2", "response 'zebra'", "airplane"],
    ),
    "capital response": (lines("net,1,1,NaN,Dog,dog,NaN,dog1.png"), ["row 1", "response 'Dog'"]),
    "missing response": (lines("net,1,1,NaN,,dog,NaN,dog1.png"), ["row 1", "response ''"]),
    "response NaN": (lines("net,1,1,NaN,NaN,dog,NaN,dog1.png"), ["row 1", "response 'NaN'"]),
    "unknown category": (
        lines(GOOD, GOOD.replace("dog,NaN", "zebra,NaN")),
        ["row 2", "category 'zebra'"],
    ),
    "no answer as category": (lines(GOOD.replace("dog,NaN", "na,NaN")), ["row 1", "category 'na'"]),
    "unknown condition": (
        lines(GOOD, "net,1,2,NaN,dog,dog,c50,dog2.png"),
        ["row 2", "condition 'c50'", "edge", "(0)"],
    ),
    "missing column": (
        lines("net,1,dog,dog,0", header="subj,trial,object_response,category,condition"),
        ["'imagename'", "subj"],
    ),
    "other separator": (lines(GOOD).replace(",", ";"), ["no column", "with commas"]),
    "two columns": (lines(GOOD + ",dog", header=HEADER + ",Category"), ["two columns 'category'"]),
    "a column twice": (
        lines(GOOD + ",cat", header=HEADER + ",category"),
        ["two columns 'category'"],
    ),
    "short row": (lines(GOOD, "net,1,2,NaN,dog"), ["row 2", "category"]),
    "row without a picture": (lines(GOOD, "net,1,2,NaN,dog,dog,NaN,"), ["row 2", "image is empty"]),
    "row without an observer": (
        lines(GOOD, ",1,2,NaN,dog,dog,NaN,dog2.png"),
        ["row 2", "observer is empty"],
    ),
    "picture twice": (
        lines(GOOD, "net,1,2,NaN,cat,cat,NaN,cat1.png", GOOD),
        ["row 3", "second answer", "row 1", "dog1.png"],
    ),
    "open quotation mark": (lines(GOOD, 'net,1,2,NaN,"dog,dog,NaN,dog2.png'), ["cannot be read"]),
    "empty": ("", ["empty"]),
    "header only": (lines(), ["no answer"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_in_one_line(name, tmp_path):
    text, fragments = WRONG[name]
    path = write(tmp_path / "edge/edge_net_session-1.csv", text)
    refused(path, str(path), *fragments)


def refused(paths, *fragments):
    with pytest.raises(AnswersError) as error:
        read_answers(paths)
    message = str(error.value)
    assert "\n" not in message and error.value.exit_code == 2
    for fragment in fragments:
        assert fragment in message
    return message


def test_what_is_no_file_of_answers_is_refused(tmp_path):
    refused(tmp_path / "gone", "gone", "nothing of that name")
    refused(tmp_path, "no *.csv")
    refused([], "no file was named")
    path = write(tmp_path / "imagenet_c/imagenet-c_net_session-1.csv", lines(GOOD))
    refused(path, "'imagenet_c'", "data set", "cue-conflict")
    path = write(tmp_path / "edge/sketch_net_session-1.csv", lines(GOOD))
    refused(path, "folder says edge", "name sketch")
    header = "model,dataset,condition,category,image,response"
    path = write(tmp_path / "many.csv", lines("a,zebra,0,cat,cat3.png,cat", header=header))
    refused(path, "row 1", "dataset 'zebra'")
    path = tmp_path / "edge/edge_binary.csv"
    path.write_bytes(bytes(range(256)))
    refused(path, "cannot be read")
    whole = gzip.compress((lines(GOOD) * 50).encode())
    for cut, content in enumerate((whole[:-20], whole[:30] + b"xxxx" + whole[34:])):
        path = tmp_path / f"edge/edge_broken{cut}.csv.gz"
        path.write_bytes(content)
        refused(path, f"broken{cut}", "cannot be read")
    os.mkfifo(tmp_path / "edge/edge_pipe.csv")
    refused(tmp_path / "edge/edge_pipe.csv", "named pipe")


def test_two_files_that_answer_one_picture_are_named(tmp_path):
    first = write(
        tmp_path / "edge/edge_net_session-1.csv", lines("net,1,1,NaN,cat,cat,NaN,cat1.png", GOOD)
    )
    second = write(tmp_path / "edge/edge_net_session-2.csv", lines(GOOD))
    refused(tmp_path, f"{second}, row 1", f"{first}, row 2", "model 'net'", "dog1.png")
    # Two sessions with different pictures are one observer, and two observers may see one picture.
    write(second, lines("net,2,1,NaN,dog,dog,NaN,dog2.png", "other,1,1,NaN,dog,dog,NaN,dog1.png"))
    assert len(read_answers(tmp_path)) == 4


def test_observers_who_disagree_about_a_picture_are_refused(tmp_path):
    first = write(tmp_path / "edge/edge_net_session-1.csv", lines(GOOD))
    second = write(
        tmp_path / "edge/edge_subject-01_session_1.csv",
        lines("subject-01,1,1,1.0,cat,cat,0,dog1.png"),
    )
    refused(tmp_path, f"{second}, row 1", str(first), "is cat in condition 0 here, but dog")
    good = "subject-01,1,1,1.0,dog,dog,0,0001_edg_s01_0_dog_00_dog1.png"
    write(second, lines(good))
    assert len(read_answers(tmp_path)) == 2


def test_names_that_break_lines_do_not_break_messages(tmp_path):
    row = '"a\nb",1,1,NaN,dog,dog,NaN,"dog\r1.png"'
    refused(
        write(tmp_path / "edge/edge_net_session-1.csv", lines(row, row)), "second answer", "row 1"
    )


def test_a_byte_order_mark_and_dos_lines_change_nothing(raw_data, tmp_path):
    path = raw_data / "edge/edge_my-net_session-1.csv"
    other = tmp_path / "edge_other.csv"
    other.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_answers(other).equals(read_answers(path))


def rows(**changes):
    row = dict(
        observer="net",
        kind="model",
        dataset="edge",
        condition="0",
        category="dog",
        image="dog1.png",
        response="cat",
    )
    return pd.DataFrame([row | changes])


@pytest.mark.parametrize(
    ("table", "fragment"),
    [
        (rows().drop(columns="image"), "no column 'image'"),
        (rows(response="zebra"), "row 1: response 'zebra'"),
        (rows(kind="animal"), "kind 'animal'"),
        (rows(condition="c50"), "condition 'c50' is none of 0"),
        (pd.concat([rows(), rows(response="dog")]), "more than one answer"),
        (pd.concat([rows(), rows(observer="other", category="cat")]), "category cat are not those"),
    ],
)
def test_wrong_tables_are_refused(table, fragment):
    with pytest.raises(AnswersError, match="^[^\n]*$") as error:
        Answers.of_rows(table)
    assert fragment in str(error.value)


def test_pictures_may_be_named_by_the_files_of_their_trials():
    trial = model("net", images=["0001_edg_dnn_0_cat_00_cat3.png"])
    assert trial.equals(model("net")) and trial.table.image.tolist() == ["cat3.png"]


def test_a_person_and_a_model_of_one_name_are_two_observers():
    both = Answers.of_rows(pd.concat([rows(observer="x"), rows(observer="x", kind="human")]))
    assert both.trials["edge"].humans == ("x",) and both.trials["edge"].models == ("x",)


def test_parts_of_answers_join_in_any_order(raw_data):
    whole = read_answers(raw_data)
    parts = [whole.only(datasets=[name]) for name in whole.datasets]
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 17):
        joined = order[0]
        for part in order[1:]:
            joined = joined + part
        assert joined.equals(whole) and joined.datasets == whole.datasets
    with pytest.raises(AnswersError, match="more than one answer"):
        whole + parts[0]
    assert len(whole.only(models=["other"])) == 4 and not len(
        whole.only(kind="model", models=["other"])
    )


def test_neither_torch_nor_a_figure_is_loaded():
    code = (
        "import sys, landscape.answers; print([name for name in ('torch', 'matplotlib', 'h5py') if "
        "name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_paths_may_be_texts(raw_data):
    assert read_answers([str(raw_data), Path(raw_data)]).equals(read_answers(str(raw_data)))
