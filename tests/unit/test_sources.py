"""What users name as data: which pictures, labels, captions and masks it gives, in which part; and what goes wrong."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_sets import coco, fill
from PIL import Image

from synoptic.data.listing import list_images
from synoptic.data.pictures import PictureError
from synoptic.data.sources import concatenate, open_source, parts_of


def keys(source) -> list[str]:
    return [path.relative_to(source.root).as_posix() for path in source.paths]


# --- which pictures


def test_a_folder_of_any_depth_in_an_order_of_names(tmp_path):
    fill(tmp_path, ["b.jpg", "a/z.PNG", "a/b/c.webp", "a.jpeg"])
    for name in ("notes.txt", ".hidden.jpg", "._b.jpg", ".git/x.jpg", "__MACOSX/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(str(tmp_path), "all")
    assert keys(source) == ["a.jpeg", "a/b/c.webp", "a/z.PNG", "b.jpg"] and len(source) == 4
    assert source.labels is None and source.classes == () and source.masks is None
    assert source.captions == [()] * 4
    assert list_images(tmp_path) == source.paths
    assert source.name(0) == str(tmp_path / "a.jpeg")
    assert source.read(3).shape == (8, 10, 3)
    assert source.read(3, longest=5).shape == (4, 5, 3)


def test_the_order_does_not_depend_on_how_accents_are_stored(tmp_path):
    fill(tmp_path / "composed", ["z.png", "\u00e9.png", "f.png"])
    fill(tmp_path / "decomposed", ["z.png", "e\u0301.png", "f.png"])
    assert [path.stem for path in list_images(tmp_path / "composed")] == ["f", "z", "\u00e9"]
    assert [path.stem for path in list_images(tmp_path / "decomposed")] == ["f", "z", "e\u0301"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    fill(tmp_path / "set", ["a/1.png", "b/2.png"])
    fill(tmp_path / "elsewhere", ["3.png"])
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "a" / "down").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "aa").symlink_to(tmp_path / "set" / "b")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "elsewhere")
    assert [str(path.relative_to(tmp_path / "set")) for path in list_images(tmp_path / "set")] == [
        "a/1.png",
        "b/2.png",
        "c/3.png",
    ]
    assert len(list_images(f"{tmp_path}/set/**/*.png")) == 3


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, ["x/1.png", "y/2.png"]))
    assert open_source(".", "all").classes == ("x", "y")
    assert [str(path) for path in list_images(".")] == ["x/1.png", "y/2.png"]
    assert len(open_source(".", "train")) == len(open_source(".", "validation")) == 1


def test_files_globs_and_lists(tmp_path, monkeypatch):
    fill(tmp_path, ["a/1.png", "a/b/2.png", "a/b/3.jpg", "c[d]/4.png"])
    (tmp_path / "a" / "notes.txt").write_text("hello")
    assert list_images(tmp_path / "a" / "1.png") == [tmp_path / "a/1.png"]
    assert list_images(f"{tmp_path}/a/*") == [tmp_path / "a/1.png"]
    assert list_images(f"{tmp_path}/a/**/*.png") == [tmp_path / "a/1.png", tmp_path / "a/b/2.png"]
    assert list_images(f"{tmp_path}/a/**/b/*.png") == [tmp_path / "a/b/2.png"]
    assert list_images(f"{tmp_path}/a/**") == [tmp_path / name for name in ("a/1.png", "a/b/2.png", "a/b/3.jpg")]
    assert list_images(f"{tmp_path}/c[d]") == [tmp_path / "c[d]/4.png"]  # a name that exists is no pattern
    listed = tmp_path / "list.txt"
    listed.write_text(f"# mine\n\na/b/3.jpg\n  a/1.png  \n{tmp_path}/a/b/2.png\n")
    assert list_images(listed) == [tmp_path / name for name in ("a/b/3.jpg", "a/1.png", "a/b/2.png")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list_images("~/a/1.png") == [tmp_path / "a/1.png"]


def test_what_a_data_set_tells_of_its_pictures_is_no_picture(tmp_path):
    kept = ["depth/4.png", "train/images/1.png", "train/images/masks/2.png", "train/views/3.jpg"]
    fill(tmp_path, [*kept, "train/masks/1.png", "train/depth/1.png", "train/normals/1.png"])
    (tmp_path / "train" / "correspondences").mkdir()
    np.save(tmp_path / "train" / "correspondences" / "1.npy", np.zeros((9, 9)))
    assert list_images(tmp_path) == [tmp_path / name for name in kept]
    assert list_images(f"{tmp_path}/**/masks/1.png") == [tmp_path / "train" / "masks" / "1.png"]
    assert list_images(tmp_path / "train" / "depth") == [tmp_path / "train" / "depth" / "1.png"]


def test_arrays_are_pictures_where_there_are_no_others(tmp_path):
    """Beside pictures they hold depth, masks or features of them."""
    for name in ("deep/a/1.npy", "deep/b/2.NPY", "mixed/1.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.full((9, 10, 4), 513, np.uint16))
    fill(tmp_path, ["mixed/1.png"])
    source = open_source(str(tmp_path / "deep"), "all")
    assert source.classes == ("a", "b") and source.keys == ["a/1.npy", "b/2.NPY"]
    assert source.read(1, bands=4).shape == (9, 10, 4) and source.read(1, 5, 4).shape == (4, 5, 4)
    with pytest.raises(PictureError, match="channels=N or depth=full reads others"):
        source.read(1)
    assert open_source(str(tmp_path / "mixed"), "all").keys == ["1.png"]
    assert len(list_images(f"{tmp_path}/deep/**")) == 2 and len(list_images(f"{tmp_path}/mixed/*")) == 1
    assert list_images(tmp_path / "mixed" / "1.npy") == [tmp_path / "mixed" / "1.npy"]


def test_arrays_that_are_left_out_beside_pictures_are_told_once(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "quicklook.png")
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.zeros((4, 8, 8), np.uint16))
    for _ in range(2):
        assert [path.name for path in list_images(tmp_path)] == ["quicklook.png"]
    assert caplog.text.count("left out 3 .npy, such as ") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/missing/dir", r"missing/dir does not exist; of its path only .* is there"),
        ("/pictrues", r"pictrues does not exist; did you mean .*/pictures\?"),
        ("/qqq", r"qqq does not exist; .* holds "),
        ("/empty", r"empty is empty: put pictures there"),
        ("/hollow", r"hollow is empty"),
        ("/texts", r"texts holds no picture \(.jpg, .png, .webp, ...\), only 2 other files, such as .*/a.txt"),
        ("/texts/*", r"no picture matches .*, only 2 other files, such as .*/a.txt"),
        ("/pictures/*.gif", r"no file matches .*gif"),
        ("/pictures/**/a/**/*.png", r"\*\* may stand once"),
        ("/lists/gone.txt", r"gone.txt, line 2: no file .*/lists/nothing.png"),
        ("/lists/none.txt", r"none.txt lists no picture"),
        ("/lists/binary.txt", r"binary.txt is not a list of pictures"),
        ("/" + "x" * 3000, r"does not exist"),
    ],
)
def test_mistakes_in_naming_pictures(tmp_path, spec, message):
    fill(tmp_path / "pictures", ["1.png"])
    for folder in ("empty", "hollow/deep/.git", "texts/sub", "lists"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").touch()
    (tmp_path / "texts" / "sub" / "b.md").touch()
    (tmp_path / "texts" / "b.md").touch()
    (tmp_path / "texts" / "sub" / "b.md").unlink()
    (tmp_path / "lists" / "gone.txt").write_text("../pictures/1.png\nnothing.png\n")
    (tmp_path / "lists" / "none.txt").write_text("# none\n\n")
    (tmp_path / "lists" / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=message) as caught:
        list_images(f"{tmp_path}{spec}")
    assert "\n" not in str(caught.value)
    if not any(sign in spec for sign in "*.x"):
        with pytest.raises(ValueError, match=message):
            open_source(f"{tmp_path}{spec}")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    fill(tmp_path, ["a/1.png", "b/2.png"])
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(ValueError, match=r"cannot read folder .*/b: Permission denied"):
        list_images(tmp_path)


# --- what is known of them


def test_class_folders(tmp_path):
    fill(tmp_path, ["dog/1.png", "cat/2.png", "cat/3.png"])
    source = open_source(str(tmp_path), "all")
    assert source.classes == ("cat", "dog")
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("names", [["1.png", "cat/2.png"], ["cat/tabby/1.png", "dog/2.png"], ["1.png"]])
def test_other_folders_are_no_classes(tmp_path, names):
    source = open_source(str(fill(tmp_path, names)), "all")
    assert source.labels is None and source.classes == ()


def test_images_beside_masks(tmp_path):
    fill(tmp_path / "images", ["x/1.jpg", "y/2.png"])
    fill(tmp_path / "masks", ["x/1.png", "y/2.png"])
    fill(tmp_path / "depth", ["x/1.png"])
    source = open_source(str(tmp_path), "all")
    assert keys(source) == ["x/1.jpg", "y/2.png"] and source.classes == ("x", "y")
    assert source.masks == [tmp_path / "masks/x/1.png", tmp_path / "masks/y/2.png"]
    (tmp_path / "masks/y/2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 masks are missing, such as .*masks/y/2.png"):
        open_source(str(tmp_path))


def test_captions_beside_images(tmp_path, caplog):
    fill(tmp_path / "images", ["1.jpg", "2.jpg", "3.jpg"])
    coco(tmp_path / "captions.json", {"1.jpg": ["one", " eins "], "3.jpg": ["three", ""], "9.jpg": ["nine"]})
    assert open_source(str(tmp_path), "all").captions == [("one", "eins"), (), ("three",)]
    assert "lists 1 pictures that are not there, such as 9.jpg" in caplog.text
    captioned = open_source(str(tmp_path), "all", captions=True)
    assert keys(captioned) == ["1.jpg", "3.jpg"] and captioned.captions == [("one", "eins"), ("three",)]


def test_a_captions_json(tmp_path):
    fill(tmp_path / "images", ["1.jpg", "a/2.jpg", "3.jpg"])
    path = coco(tmp_path / "captions_train.json", {"a/2.jpg": ["two"], "1.jpg": []})
    assert keys(open_source(str(path), "all")) == ["1.jpg", "a/2.jpg"]
    assert keys(open_source(str(path), "all", captions=True)) == ["a/2.jpg"]
    with pytest.raises(ValueError, match="has no test part"):
        open_source(str(path), "test")


def test_annotations_of_unlisted_pictures_are_told(tmp_path, caplog):
    fill(tmp_path / "images", ["1.jpg"])
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    open_source(str(tmp_path / "c.json"), "all")
    assert "1 annotations belong to pictures that it does not list" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "is no captions JSON"),
        ('{"images": 3}', "is no captions JSON"),
        ('{"images": [{"id": 1}]}', "is no captions JSON"),
        ('{"images": [{"id": [], "file_name": "a.jpg"}]}', "is no captions JSON"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": {}}]}', "is no captions JSON"),
        ('{"images": []}', "lists no picture"),
        ('{"images": [{"id": 1, "file_name": "../../a.jpg"}]}', "'../../a.jpg' points outside its folder"),
        ('{"images": [{"id": 1, "file_name": "/etc/a.jpg"}]}', "'/etc/a.jpg' points outside its folder"),
        ('{"images": [{"id": 1, "file_name": ""}]}', "points outside its folder"),
    ],
)
def test_broken_json(tmp_path, content, message):
    (tmp_path / "images").mkdir()
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(str(tmp_path / "c.json"))
    assert str(tmp_path / "c.json") in str(caught.value)


def test_captions_asked_for_but_not_there(tmp_path):
    fill(tmp_path / "images", ["1.jpg", "2.jpg"])
    with pytest.raises(ValueError, match=r"has no captions: put a captions.json of COCO's form beside images/"):
        open_source(str(tmp_path), captions=True)
    path = coco(tmp_path / "captions_train.json", {"1.jpg": [], "2.jpg": []})
    with pytest.raises(ValueError, match=r"name a captions file as data: .*/captions_train.json"):
        open_source(str(tmp_path), captions=True)
    with pytest.raises(ValueError, match=r"has no captions: none of its annotations has one"):
        open_source(str(path), captions=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "data is empty"),
        ("{here}/pictures.zip", "is a file: data is a folder of pictures, a captions file"),
        ("{here}/config.json", r"config.json is no captions JSON, .*; data may also be a folder"),
        ("{here}/lone.json", r"lone.json describes pictures in .*images, which is not there; images=DIR says"),
        ("scenes:count=abc", "count=abc is none of count=N, size=PIXELS"),
        ("scenes:shapes=3", "shapes=3 is none of count=N"),
        ("scenes:objects=9", "objects"),
    ],
)
def test_other_mistakes_in_naming_data(tmp_path, spec, message):
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    (tmp_path / "config.json").write_text('{"data": "photos", "out": "runs/a"}')
    coco(tmp_path / "lone.json", {"1.jpg": ["x"]})
    with pytest.raises(ValueError, match=message):
        open_source(spec.format(here=tmp_path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split": "dev"}, "split=dev is none of"),
        ({"validation": 0.0}, "loader.validation=0 is no share above 0 and below 1"),
        ({"validation": 1.0}, "loader.validation=1 is no share"),
    ],
)
def test_impossible_parts(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        open_source(str(fill(tmp_path, ["1.png", "2.png"])), **setting)


# --- which part


def test_a_data_set_with_all_parts(tmp_path):
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        fill(tmp_path / part, [f"a/{part}{number}.png" for number in range(count)])
    parts = {part: keys(open_source(str(tmp_path), part)) for part in ("train", "validation", "test")}
    assert parts == {
        "train": [f"a/train{number}.png" for number in range(5)],
        "validation": ["a/val0.png", "a/val1.png", "a/val2.png"],
        "test": ["a/test0.png", "a/test1.png"],
    }
    everything = open_source(str(tmp_path), "all")
    assert len(everything) == 8 and not any("test" in path.name for path in everything.paths)
    assert everything.classes == ("a",) and everything.labels.tolist() == [0] * 8
    assert parts_of(str(tmp_path)) == ("train", "validation", "test")


def test_the_folder_validation_goes_before_val(tmp_path):
    fill(tmp_path, ["train/1.png", "val/2.png", "validation/3.png"])
    assert keys(open_source(str(tmp_path), "validation")) == ["3.png"]


def test_a_data_set_without_a_validation_part(tmp_path):
    fill(tmp_path / "train", [f"{number}.png" for number in range(40)])
    fill(tmp_path / "test", ["1.png"])
    train, validation = open_source(str(tmp_path)), open_source(str(tmp_path), "validation")
    assert (len(train), len(validation)) == (36, 4)
    assert sorted(train.paths + validation.paths) == sorted(open_source(str(tmp_path), "all").paths)
    # The same pictures are set apart when the train folder itself is named.
    assert validation.paths == open_source(str(tmp_path / "train"), "validation").paths


def test_classes_have_the_same_number_in_every_part(tmp_path):
    fill(tmp_path, ["train/b/1.png", "train/d/1.png", "test/d/1.png", "test/a/1.png", "val/d/1.png"])
    assert open_source(str(tmp_path), "train").classes == ("b", "d")
    test = open_source(str(tmp_path), "test")
    assert test.classes == ("b", "d", "a") and test.labels.tolist() == [2, 1]
    assert open_source(str(tmp_path), "validation").labels.tolist() == [1]


def test_a_class_called_train_is_no_part(tmp_path):
    fill(tmp_path, ["train/1.png", "bus/2.png"])
    assert open_source(str(tmp_path), "all").classes == ("bus", "train")
    with pytest.raises(ValueError, match="has no test part: a data set has folders train/ and test/"):
        open_source(str(tmp_path), "test")
    assert parts_of(str(tmp_path)) == ("train",)


def test_train_alone_is_a_part(tmp_path):
    fill(tmp_path, ["train/a/1.png", "train/b/2.png"])
    assert open_source(str(tmp_path), "all").classes == ("a", "b")


@given(st.integers(2, 100), st.floats(0.001, 0.999))
@settings(max_examples=25)
def test_the_share_set_apart(tmp_path_factory, count, share):
    folder = tmp_path_factory.mktemp("set")
    for number in range(count):
        (folder / f"{number}.png").touch()
    train, validation = (open_source(str(folder), part, validation=share) for part in ("train", "validation"))
    assert len(validation) == min(max(round(share * count), 1), count - 1)
    assert not set(train.paths) & set(validation.paths) and len(train) + len(validation) == count


def test_new_pictures_move_few_others_between_the_parts(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.png").touch()
    before = set(open_source(str(tmp_path), "validation").paths)
    for number in range(400, 440):
        (tmp_path / f"{number}.png").touch()
    after = set(open_source(str(tmp_path), "validation").paths)
    assert len(before) == 40 and len(before - after) <= 6


def test_parts_keep_what_belongs_to_each_picture(tmp_path):
    names = [f"{kind}/{number}.jpg" for kind in "ab" for number in range(10)]
    fill(tmp_path / "images", names)
    fill(tmp_path / "masks", [name.replace("jpg", "png") for name in names])
    coco(tmp_path / "captions.json", {name: [f"caption of {name}"] for name in names[::2]})
    for part in ("train", "validation"):
        source = open_source(str(tmp_path), part, captions=True, validation=0.4)
        assert len(source) >= 2
        for key, label, captions, mask in zip(keys(source), source.labels, source.captions, source.masks, strict=True):
            assert key[0] == "ab"[label]
            assert captions == (f"caption of {key}",)
            assert mask == tmp_path / "masks" / key.replace("jpg", "png")


def test_a_single_picture(tmp_path):
    fill(tmp_path, ["1.png"])
    assert len(open_source(str(tmp_path))) == 1
    with pytest.raises(ValueError, match="a single picture: none is left for validation"):
        open_source(str(tmp_path), "validation")


# --- several sets


def test_several_sets_of_the_same_classes(tmp_path):
    fill(tmp_path, ["one/a/1.png", "one/b/2.png", "two/a/3.png", "two/b/4.png", "two/b/5.png"])
    source = open_source(f"{tmp_path}/one, {tmp_path}/two", "all")
    assert [path.name for path in source.paths] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert source.classes == ("a", "b") and source.labels.tolist() == [0, 1, 0, 1, 1]
    assert len(open_source(f"{tmp_path}/one,{tmp_path}/two", "validation")) == 2


def test_several_sets_of_different_classes(tmp_path, caplog):
    fill(tmp_path, ["one/a/1.png", "two/c/2.png", "three/3.png"])
    assert open_source(f"{tmp_path}/one,{tmp_path}/two", "all").labels is None
    assert "no labels are used" in caplog.text
    source = open_source(f"{tmp_path}/one,{tmp_path}/three", "all")
    assert source.labels is None and source.classes == ()


def test_masks_and_captions_of_several_sets(tmp_path):
    for name in ("one", "two"):
        fill(tmp_path / name, ["images/1.png", "masks/1.png"])
    fill(tmp_path / "three", ["1.png"])
    coco(tmp_path / "one" / "captions.json", {"1.png": ["x"]})
    both = open_source(f"{tmp_path}/one,{tmp_path}/two", "all")
    assert both.masks == [tmp_path / "one/masks/1.png", tmp_path / "two/masks/1.png"]
    assert both.captions == [("x",), ()]
    assert open_source(f"{tmp_path}/one,{tmp_path}/three", "all").masks is None


def test_commas_in_names(tmp_path):
    fill(tmp_path, ["a,b/1.png", "c/2.png"])
    assert len(open_source(f"{tmp_path}/a,b", "all")) == 1
    assert len(open_source(f"{tmp_path}/a,b,{tmp_path}/c", "all")) == 2
    with pytest.raises(ValueError, match="d does not exist"):
        open_source(f"{tmp_path}/c,{tmp_path}/d", "all")


def test_one_set_alone_stays_itself(tmp_path):
    source = open_source(str(fill(tmp_path, ["1.png"])), "all")
    assert concatenate([source]) is source
