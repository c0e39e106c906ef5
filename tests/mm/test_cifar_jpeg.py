import tarfile

import pytest

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from norton_plugin.mm import evaluate, pack_folder
from norton_plugin.zoo import load_source


@pytest.mark.slow
def test_the_public_resnet20_on_the_jpeg_test_set(shared_data, tmp_path):
    with tarfile.open(shared_data / "cifar10_jpeg" / "test.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    images = pack_folder(tmp_path / "test", cache=False)
    source = load_source("cifar:resnet20", checkpoint=shared_data / "weights" / "cifar10_resnet20.safetensors")
    result = evaluate(source.model, images, mean=source.mean, std=source.std)
    assert result.n == 10_000
    assert result.top1 == pytest.approx(81.03, abs=0.1)  # docs/results, "rank by rank"
