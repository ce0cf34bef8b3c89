import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.bundle import Bundle
from fedstill.errors import InputError, RunError

numbers = st.dictionaries(st.text(max_size=6), st.floats(allow_nan=False), max_size=4)
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)


@given(numbers, dtypes, st.lists(st.integers(0, 3), max_size=3))
def test_bytes_and_back(table, dtype, shape):
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape).to(dtype)
    bundle = Bundle().put(table, model={"a.b": tensor, "scalar": torch.tensor(3)}, statistics={})
    again = Bundle.from_bytes(bundle.to_bytes())
    assert again.numbers == table
    assert set(again.groups) == {"model", "statistics"}
    assert again.groups["model"]["a.b"].dtype == dtype
    assert torch.equal(again.groups["model"]["a.b"], tensor)
    assert again.to_bytes() == bundle.to_bytes()


def test_numbers_may_be_infinite_or_nan():
    again = Bundle.from_bytes(Bundle().put({"a": math.inf, "b": math.nan}).to_bytes())
    assert again.numbers["a"] == math.inf
    assert math.isnan(again.numbers["b"])


def test_put_leaves_the_old_bundle_alone():
    old = Bundle().put({"round": 1}, model={"w": torch.zeros(2)})
    new = old.put({"round": 2}, model={"w": torch.ones(2)})
    assert old.numbers == {"round": 1}
    assert old.groups["model"]["w"].sum() == 0
    assert new.numbers == {"round": 2}


def test_group_names_come_from_one_table():
    with pytest.raises(ValueError, match="modle"):
        Bundle().put(modle={})


def test_members_and_drop():
    bundle = Bundle().put(**{"model": {}, "model:big": {}, "synthetic:c1": {}})
    assert set(bundle.members("model")) == {"big"}
    assert set(bundle.drop("model", "absent").groups) == {"model:big", "synthetic:c1"}


def test_nbytes_counts_payload():
    assert Bundle().put({"n": 1}, model={"w": torch.zeros(3, 2)}).nbytes == 8 + 24


def test_detached_shares_no_memory():
    weight = torch.nn.Parameter(torch.zeros(2))
    crossed = Bundle().put(model={"w": weight, "t": torch.zeros(2, 3).t()}).detached()
    with torch.no_grad():
        weight += 1
    assert crossed.groups["model"]["w"].tolist() == [0, 0]
    assert not crossed.groups["model"]["w"].requires_grad
    assert crossed.groups["model"]["t"].is_contiguous()


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"not a bundle at all", b"\xff" * 40])
def test_damaged_bytes_are_one_sentence(content):
    with pytest.raises(InputError, match="damaged"):
        Bundle.from_bytes(content)


@given(st.data())
def test_no_mutation_of_a_file_escapes_the_error(data):
    content = bytearray(Bundle().put({"n": 1}, model={"w": torch.ones(2)}).to_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    with contextlib.suppress(InputError):
        Bundle.from_bytes(bytes(content[:cut]))


def test_finite():
    assert Bundle().put({"a": 1}, model={"w": torch.ones(1), "n": torch.tensor(3)}).finite()
    assert not Bundle().put({"a": math.nan}).finite()
    assert not Bundle().put(model={"w": torch.tensor([math.inf])}).finite()


def test_files(tmp_path):
    path = tmp_path / "deep" / "b.safetensors"
    Bundle().put({"a": 1}).save(path)
    assert Bundle.open(path).numbers == {"a": 1}
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        Bundle.open(tmp_path / "missing.safetensors")
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        Bundle().save(blocked / "below")
