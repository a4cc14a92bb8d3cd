"""load on files that are damaged, foreign or hostile: always a clear error, soon, and without much memory."""

import hashlib
import json
import os
import pickle
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import safetensors.numpy
from catalogue import haiku_mlp

import numpyro_diffusion as nd
from numpyro_diffusion.io.saving import pack, unpack

MIB = 2**20


def plain(params, x_t, t, context):
    return params["gain"] * x_t


def tiny():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(1), variance="upper")
    transition = nd.Transition(plain, {"gain": jnp.asarray([0.5])}, (1,))
    return nd.Diffusion(kernel, transition, estimator=nd.RandomStep(), rng_key=jax.random.key(0))


def network():
    return nd.Diffusion(nd.GaussianKernel(nd.schedules.log_snr(3)), haiku_mlp())


@pytest.fixture(name="path")
def _path(tmp_path):
    path = tmp_path / "file"
    nd.save(tiny(), path)
    return path


def forge(path, change, make=tiny):
    """A file with a valid seal that says something else."""
    nd.save(make(), path)
    tensors, settings = unpack(path)
    change(settings["prior"], tensors)
    del settings["format"], settings["sha256"]
    path.write_bytes(pack(tensors, settings))


def sealed(tensors, text):
    data = safetensors.numpy.save(tensors, {"numpyro_diffusion": text})
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_every_flipped_bit_is_noticed(path):
    data = bytearray(path.read_bytes())
    for index in range(len(data)):
        data[index] ^= 1 << index % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"^Expected .*; got"):
            unpack(path)
        data[index] ^= 1 << index % 8
    path.write_bytes(data)
    assert nd.load(path, network=plain).transition.params["gain"] == 0.5


def test_every_truncation_and_anything_after_the_end_is_noticed(path):
    data = path.read_bytes()
    for length in (*range(0, len(data), 5), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"^Expected .*; got .*truncated, damaged"):
            nd.load(path, network=plain)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="truncated, damaged"):
        nd.load(path, network=plain)


FOREIGN = [
    b"",
    b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20,
    pickle.dumps({"gain": list(range(1000))}),
    b"PK\x03\x04" + bytes(1000),
    safetensors.numpy.save({"w": np.zeros(3)}),
    *(
        safetensors.numpy.save({}, {"numpyro_diffusion": text})
        for text in ("no", "[]", "{}", '{"format": 1}', '{"format": NaN}', '{"format": 1, "sha256": []}', "[" * 100_000)
    ),
    safetensors.numpy.save({}, {"numpyro_diffusion": '{"format": 1, "sha256": "%s"}' % ("0" * 64)}),
    with_header({"__metadata__": {"numpyro_diffusion": 3}}),
    with_header({"__metadata__": [], "w": 3}),
    with_header(b"\xff\xfe{}"),
    with_header(b"[" * 100_000),
    with_header(b'{"a":' * 100_000),
    with_header(b"1" * 100_000),
    with_header(b'{"a": "' + b'\\"' * 1_000_000),
]


@pytest.mark.parametrize("data", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_files_are_named(data, path):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^Expected .*; got .*not of numpyro_diffusion.save") as caught:
        nd.load(path)
    assert len(str(caught.value)) < 1000


TENSOR = {"__metadata__": {"numpyro_diffusion": '{"format": 1}'}, "w": {"dtype": "F32"}}
HUGE = [
    (2**40).to_bytes(8, "little") + b"{}" * 100,
    with_header({**TENSOR, "w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"\0" * 64),
    with_header({**TENSOR, "w": {"dtype": "F32", "shape": [2**62, 2**62, 4], "data_offsets": [0, 64]}}, b"\0" * 64),
    with_header({**TENSOR, "w": {"dtype": "F32", "shape": [-1], "data_offsets": [64, -4]}}, b"\0" * 64),
]


@pytest.mark.parametrize("data", HUGE, ids=range(len(HUGE)))
def test_nothing_is_allocated_on_the_word_of_a_header(data, path):
    path.write_bytes(data)
    assert_cheap_error(path, "Expected .*; got")


def assert_cheap_error(path, message, **kwargs):
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ValueError, match=message):
            nd.load(path, **kwargs)
        assert time.process_time() - start < 5
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def test_a_large_foreign_file_is_refused_by_its_header(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(with_header({"w": {"dtype": "U8", "shape": [2**33], "data_offsets": [0, 2**33]}}))
        file.truncate(2**33)  # takes no room on the disk
    assert_cheap_error(path, "numpyro_diffusion settings|safetensors file")


@pytest.mark.parametrize("name", ["num_time_features", "num_frequencies", "width", "depth", "num_outputs", "event_dim"])
@pytest.mark.parametrize("value", [2**20, 2**40, -1, "4"])
def test_settings_of_a_network_are_bounded(no_type_checks, name, value, path):
    def change(prior, tensors):
        prior["network"]["settings"][name] = value

    forge(path, change, network)
    assert_cheap_error(path, f"{name} of MLP as .*int|a network that runs with all the file's parameters")


def put(*keys, value):
    def change(prior, tensors):
        for key in keys[:-1]:
            prior = prior[key]
        prior[keys[-1]] = value

    return change


def drop(*keys):
    def change(prior, tensors):
        for key in keys[:-1]:
            prior = prior[key]
        del prior[keys[-1]]

    return change


def tensor(name, value):
    def change(prior, tensors):
        tensors[name] = value

    return change


LEAF = {"numpy": "params/gain"}
FITS = "a network that runs with all the file's parameters"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # names are looked up in tables, never imported
        (put("kernel", "class", value="os.system"), "a kernel out of BernoulliKernel, .*got os.system"),
        (put("kernel", "class", value={"a": []}), "a kernel out of"),
        (put("estimator", "class", value="builtins.eval"), "a estimator out of .*got builtins.eval"),
        (put("estimator", value={"custom": "builtins.eval"}), "estimator=.*got .*builtins.eval"),
        (put("network", value={"class": "os.system", "settings": {}}), "a network out of gaussian_mixture.*os.system"),
        (put("kernel", "settings", value={"custom": "os.system"}), r"settings \['data_scale'.*; got \['custom'\]"),
        # unknown and missing fields
        (put("extra", value=1), r"settings \['batch_shape'.*; got .*'extra'"),
        (drop("rng_key"), r"settings .*'rng_key'.*; got"),
        (put("kernel", "settings", "__class__", value="x"), r"settings .*; got \['__class__'"),
        (put("schedule", value=[]), r"settings .*'noise_variance'.*; got \[\]"),
        # values
        (put("kernel", "settings", "variance", value="none"), "variance one of"),
        (
            put("kernel", "settings", "data_scale", value="1"),
            "data_scale of GaussianKernel as .*float.*, finite; got 1",
        ),
        (put("estimator", "settings", "num_draws", value=-1), "num_draws of RandomStep as .*int"),
        (put("event_shape", value=[1, "a"]), "a tuple of positive integers"),
        (put("event_shape", value=3), "settings of a prior; got TypeError"),
        (put("context_shape", value=[1]), "a context of trailing shape"),
        (put("context_shape", value=[2**40]), "a context of trailing shape"),
        (put("context", value=LEAF), "transition"),
        (put("context", value="os.system"), "transition"),
        (put("batch_shape", value=[[]]), "batch_shape to be a tuple of positive integers"),
        (put("rng_key", value={"list": [{"jax": "rng_key"}]}), "a random key; got"),
        (put("rng_key", "impl", value="os.system"), "a key of threefry2x32"),
        (tensor("rng_key", np.zeros(3, np.uint32)), "settings of a prior; got TypeError"),
        (tensor("params/gain", np.zeros(7, np.float32)), FITS),
        (tensor("schedule/beta", np.zeros(7)), "vectors of one length as a schedule"),
        (put("schedule", "beta", value=None), "vectors of one length as a schedule"),
        # nodes
        (put("params", value={}), "a value; got"),
        (put("params", value=[1]), "a value; got"),
        # what a prior may carry
        (put("levels", value=[1, 2]), r"1 rising levels; got \[1, 2\]"),
        (put("levels", value="os"), "levels to be a tuple of positive integers"),
        (put("first_ratio", value="a"), r"a number in \(0, 1\] as first_ratio; got a"),
        (put("first_ratio", value={"numpy": "schedule/beta"}), r"a number in \(0, 1\] as first_ratio"),
        (put("errors", value=None), r"settings \['diagonal', 'factor'\]; got None"),
        (put("errors", value={"dict": {"factor": 1, "diagonal": 1}}), "settings of a prior; got AttributeError"),
        (
            put("errors", value={"dict": {"factor": {"numpy": "schedule/beta"}, "diagonal": {"numpy": "params/gain"}}}),
            r"factor \(T, d, q\) and diagonal \(T, d\)",
        ),
        (put("params", value={"dict": []}), "a dict, list, tuple or array"),
        (put("params", value={"pickle": "params/gain"}), "a dict, list, tuple or array"),
        (put("params", value={"jax": 3}), "a dict, list, tuple or array"),
        (
            put("params", value={"dict": {"gain": {"jax": "no/such"}}}),
            "array of the file; got .*no/such",
        ),
    ],
    ids=range(39),
)
def test_a_file_can_say_only_what_a_prior_is(no_type_checks, change, message, path):
    forge(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        nd.load(path, network=plain)
    assert str(caught.value).startswith("Expected ")


def affine():
    return dist.TransformedDistribution(tiny(), dist.transforms.AffineTransform(jnp.asarray([1.0]), 2.0))


def transforms(name, **settings):
    return [{"transforms": [{"class": name, "settings": settings}], "validate_args": None}]


@pytest.mark.parametrize(
    ("wrappers", "message"),
    [
        ({"transforms": []}, "a list of wrappers"),
        ([{"pickle": "x"}], "one of expand, to_event, transforms; got"),
        ([{"to_event": 9}], r"a wrapper for a prior of shape \(1,\); got .*to_event"),
        ([{"expand": [2**40, 0]}], "a wrapper for a prior of shape"),
        (transforms("eval"), "a transform out of .*; got eval"),
        (transforms("AffineTransform"), "settings .*domain"),
        (transforms("AffineTransform", loc="a", scale=1.0, domain="real"), "numbers as loc of AffineTransform; got a"),
        (transforms("AffineTransform", loc=0.0, scale=1.0, domain="circle"), "a domain out of real, .*; got circle"),
        (transforms("AffineTransform", loc=0.0, scale=0.0, domain="real"), "got AffineTransform with a scale of 0"),
        (transforms("LowerCholeskyAffine", loc=0.0, scale_tril=1.0), "parameters of LowerCholeskyAffine"),
        (transforms("IndependentTransform", base_transform={}, reinterpreted_batch_ndims=1), "settings"),
        (
            transforms("BySupport", supports="real"),
            "a word or number for each column as supports of BySup",
        ),
        (transforms("BySupport", supports={"tuple": ["real", "fun"]}), "parameters of BySupport.*supports out of"),
        (transforms("InsertConstants", constants={"tuple": [[1]]}), "a value; got"),
        (transforms("ComposeTransform", parts=3), "a list of transforms; got 3"),
    ],
)
def test_a_file_can_name_only_the_wrappers_of_a_table(wrappers, message, path):
    nd.save(affine(), path)
    tensors, settings = unpack(path)
    del settings["format"], settings["sha256"]
    path.write_bytes(pack(tensors, {**settings, "wrappers": wrappers}))
    with pytest.raises(ValueError, match=message):
        nd.load(path, network=plain)


def test_settings_that_are_nested_without_end_are_an_error(path):
    text = ('{"list":[' * 5000) + "null" + "]}" * 5000
    nd.save(tiny(), path)
    tensors, settings = unpack(path)
    settings["prior"]["params"] = "NESTED"
    forged = json.dumps({**settings, "sha256": "0" * 64}).replace('"NESTED"', text)
    path.write_bytes(sealed(tensors, forged))
    with pytest.raises(ValueError, match=r"got .*[Rr]ecursion"):
        nd.load(path, network=plain)


def test_a_dtype_that_no_prior_has_is_refused_and_booleans_are_true_or_false(path):
    tensors, settings = unpack(path)
    text = json.dumps({**settings, "sha256": "0" * 64})
    path.write_bytes(sealed({**tensors, "more": np.zeros(2, jnp.float8_e4m3fn)}, text))
    with pytest.raises(ValueError, match=r"a dtype out of .*got F8_E4M3"):
        nd.load(path)
    path.write_bytes(sealed({**tensors, "more": np.asarray([2, 0], np.uint8).view(bool)}, text))
    more = unpack(path)[0]["more"]
    assert more.view(np.uint8).tolist() == [1, 0]


def test_a_newer_format_says_to_upgrade(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"format\\":1', b'\\"format\\":4'))
    with pytest.raises(ValueError, match=r"a format version up to 3; got 4. Upgrade numpyro-diffusion"):
        nd.load(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        nd.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="a regular file; got"):
        nd.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a regular file; got"):
        nd.load(tmp_path / "pipe")
