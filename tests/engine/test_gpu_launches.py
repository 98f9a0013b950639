"""The copies of a kernel's arguments, with another part of the CPU's memory instead of a GPU's."""

import torch

from tests.engine.gpu_launches import launched_on

CPU = torch.device("cpu")


def test_a_kernel_works_on_copies_and_what_it_writes_comes_back():
    table = torch.arange(12.0).reshape(3, 4)
    column, nothing, number = table[:, 1], torch.empty(0), 7

    def run(kernel, table_copy, column_copy, *, empty, meta, value, name):
        assert (kernel, value, name) == ("kernel", number, None)
        assert empty.shape == (0,)
        assert meta.device.type == "meta"
        assert table_copy.data_ptr() != table.data_ptr()
        assert (column_copy.shape, column_copy.stride()) == (column.shape, column.stride())
        column_copy += 100
        assert table_copy[:, 1].tolist() == [101, 105, 109]  # they share memory
        assert column.tolist() == [1, 5, 9]
        return "launched"

    launch = launched_on(CPU, run)
    meta = torch.empty(3, device="meta")
    assert launch("kernel", table, column, empty=nothing, meta=meta, value=number, name=None) == (
        "launched"
    )
    assert table[:, 1].tolist() == [101, 105, 109]
    assert table[:, 0].tolist() == [0, 4, 8]


def test_values_of_every_type_keep_their_bits():
    codes = torch.tensor([-128, 127], dtype=torch.int8)
    halves = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    float8 = torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn)

    def run(_kernel, *copies):
        for copy, whole in zip(copies, (codes, halves, float8), strict=True):
            assert copy.dtype == whole.dtype
            assert torch.equal(copy.view(torch.uint8), whole.view(torch.uint8))

    launched_on(CPU, run)("kernel", codes, halves, float8)
