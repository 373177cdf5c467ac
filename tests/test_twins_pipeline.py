"""The exported pipeline equals `fill_holes` with one crop."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from pictures import hole_in, picture
from scipy.ndimage import uniform_filter
from test_geometry_cases import HOLES, LARGE_HOLES, MASKS, SHAPE, SIZE

from migan_jax.geometry.fill import fill_holes
from migan_jax.twins.onnx_network import INPUT, OPSET, OUTPUT
from migan_jax.twins.onnx_pipeline import to_pipeline

pytestmark = pytest.mark.torch

RADIUS = 8  # pixels that the network below sees on every side


def make_blur_network(size):
    """Return a network whose output depends on neighbours and on their mask."""
    make = onnx.helper.make_node
    kernel = 2 * RADIUS + 1
    nodes = [
        make(
            "AveragePool",
            [INPUT],
            ["mean"],
            kernel_shape=[kernel] * 2,
            pads=[RADIUS] * 4,
            count_include_pad=1,
        ),
        make("Split", ["mean", "sizes"], ["known", "rgb"], axis=1),
        make("Add", ["rgb", "known"], [OUTPUT]),
    ]
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "blur",
        [value(INPUT, kind, ["batch", 4, size, size])],
        [value(OUTPUT, kind, ["batch", 3, size, size])],
        [onnx.numpy_helper.from_array(np.array([1, 3]), "sizes")],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)


def blur(image, known):
    """Compute the same in NumPy."""
    x = np.concatenate([known - 0.5, image], axis=-1)
    sizes = (1, 2 * RADIUS + 1, 2 * RADIUS + 1, 1)
    mean = uniform_filter(x.astype(np.float64), sizes, mode="constant")
    return (mean[..., 1:] + mean[..., :1]).astype(np.float32)


@pytest.fixture(scope="module")
def pipelines():
    """Return sessions by the network's size."""
    return {
        size: onnxruntime.InferenceSession(
            to_pipeline(make_blur_network(size), size).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        for size in (SIZE, 512)
    }


def run(session, images, masks):
    feed = {
        "image": np.ascontiguousarray(np.moveaxis(np.stack(images), -1, 1)),
        "mask": np.stack(masks)[:, None],
    }
    return np.moveaxis(session.run(["result"], feed)[0], 1, -1)


def check(session, size, hole, mask=None):
    image = picture(*hole.shape)
    mask = np.where(hole, 0, 255).astype(np.uint8) if mask is None else mask
    result = run(session, [image], [mask])[0]
    assert result.dtype == np.uint8
    expected = fill_holes(image, hole, blur, size, crops="one")
    difference = np.abs(result.astype(int) - expected)
    assert difference.max(initial=0) <= 1 and np.mean(difference > 0) < 1e-3
    if hole.any():
        assert (expected != image).any()
    else:
        np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("name", HOLES)
def test_every_hole(name, pipelines):
    check(pipelines[SIZE], SIZE, HOLES[name])


@pytest.mark.parametrize("name", LARGE_HOLES)
def test_large_photos(name, pipelines):
    check(pipelines[512], 512, LARGE_HOLES[name])


@pytest.mark.parametrize("name", ["0/1", "0/254", "0/255", "soft", "faint"])
def test_masks_of_all_kinds(name, pipelines):
    """High is known, as in released pipelines."""
    mask, high = MASKS[name]
    check(pipelines[SIZE], SIZE, ~high, mask)


def test_a_batch_equals_its_images(pipelines):
    """Each has its own crop; some have no hole or nothing known."""
    names = "one pixel", "nothing", "wide", "two far ones", "everything", "last column"
    images = [picture(*SHAPE, seed=seed) for seed in range(len(names))]
    masks = [np.where(HOLES[name], 0, 255).astype(np.uint8) for name in names]
    batch = run(pipelines[SIZE], images, masks)
    for image, mask, result in zip(images, masks, batch, strict=True):
        alone = run(pipelines[SIZE], [image], [mask])[0]
        assert np.abs(result.astype(int) - alone).max() <= 1
        assert np.mean(result != alone) < 1e-4


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (1, 30), (30, 1), (20, 29)])
def test_a_mask_of_another_size(shape, pipelines, capfd):
    with pytest.raises(Exception, match="Concat"):
        run(pipelines[SIZE], [picture(20, 30)], [np.zeros(shape, np.uint8)])


def test_inputs_and_outputs_are_those_of_released_pipelines(pipelines):
    session = pipelines[SIZE]
    found = [(x.name, x.type, x.shape) for x in session.get_inputs()]
    sizes = "height", "width"
    assert found == [
        ("image", "tensor(uint8)", ["batch", 3, *sizes]),
        ("mask", "tensor(uint8)", ["batch", 1, *sizes]),
    ]
    (result,) = session.get_outputs()
    assert (result.name, result.type) == ("result", "tensor(uint8)")


def test_there_are_no_loops_or_branches():
    model = to_pipeline(make_blur_network(SIZE), SIZE)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Loop", "If", "Scan", "NonZero", "ScatterND"}
    assert not model.functions


def test_grey_images_are_refused(pipelines):
    image = np.zeros((1, 1, 20, 30), np.uint8)
    with pytest.raises(Exception, match="image"):
        pipelines[SIZE].run(None, {"image": image, "mask": image})


def test_holes_at_the_border_see_the_mirrored_photo(pipelines):
    """Otherwise the completion would be nearly constant."""
    hole = hole_in((20, 20), (0, 0, 20, 5))
    image = picture(20, 20)
    result = run(pipelines[SIZE], [image], [np.where(hole, 0, 255).astype(np.uint8)])[0]
    assert len(np.unique(result[hole])) > 20
