"""load on files that are damaged, foreign or hostile: always a clear error, soon, and without much memory."""

import io
import json
import os
import pickle
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from catalogue import haiku_mlp

import numpyro_diffusion as nd
from numpyro_diffusion.io.tensor_file import _check_depth, pack, unpack

MIB = 2**20


def plain(params, x_t, t, context):
    return params["gain"] * x_t


def tiny():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(1), variance="upper")
    return nd.Diffusion(kernel, nd.Transition(plain, {"gain": jnp.asarray([0.5])}, (1,)), rng_key=jax.random.key(0))


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
    with path.open("rb") as stream:
        tensors, settings = unpack(stream, path.stat().st_size)
    change(settings["prior"], tensors)
    path.write_bytes(pack(tensors, settings))


def with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_every_flipped_bit_is_noticed(path):
    data = bytearray(path.read_bytes())
    for index in range(len(data)):
        for bit in range(8):
            data[index] ^= 1 << bit
            try:
                unpack(io.BytesIO(data), len(data))
            except ValueError as error:
                assert str(error).startswith("Expected ")
            else:
                pytest.fail(f"bit {bit} of byte {index} was flipped and not noticed")
            data[index] ^= 1 << bit
    assert len(unpack(io.BytesIO(data), len(data))[0]) == 5


def test_flipped_bits_of_a_file_are_noticed(path):
    data = bytearray(path.read_bytes())
    for index in range(0, len(data), 29):
        data[index] ^= 1 << index % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"^Expected .*; got"):
            nd.load(path, network=plain)
        data[index] ^= 1 << index % 8
    path.write_bytes(data)
    assert nd.load(path, network=plain).transition.params["gain"] == 0.5


def test_every_truncation_and_anything_after_the_end_is_noticed(path):
    data = path.read_bytes()
    for length in (*range(0, len(data), 5), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"^Expected .*; got .*truncated or damaged"):
            nd.load(path, network=plain)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=f"a file of {len(data)} bytes, by its header; got {len(data) + 1} bytes"):
        nd.load(path, network=plain)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a header of at most 0 bytes; got a file of 0 bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "a header of at most"),
        (pickle.dumps({"gain": list(range(1000))}), "a header of at most"),
        (b"PK\x03\x04" + bytes(1000), "Expected .* header"),
        (safetensors.numpy.save({"w": np.zeros(3)}), "numpyro_diffusion settings in the file's header; got none"),
        (safetensors.numpy.save({}, {"numpyro_diffusion": "no"}), "a JSON object as the file's settings"),
        (safetensors.numpy.save({}, {"numpyro_diffusion": "[]"}), "it is a list"),
        (safetensors.numpy.save({}, {"numpyro_diffusion": "{}"}), "a format version >= 1; got None"),
        (
            safetensors.numpy.save({}, {"numpyro_diffusion": '{"format": 1}'}),
            "a SHA-256 in the file's settings; got None",
        ),
        (
            safetensors.numpy.save({}, {"numpyro_diffusion": '{"format": 1, "sha256": "%s"}' % ("0" * 64)}),
            "another spelling",
        ),
        (safetensors.numpy.save({}, {"numpyro_diffusion": '{"format": NaN}'}), "NaN is no number"),
        (with_header({"__metadata__": {"numpyro_diffusion": 3}}), "numpyro_diffusion settings"),
        (with_header({"__metadata__": [], "w": 3}), "numpyro_diffusion settings"),
        (with_header(b'{"a": 1, "a": 2}'), "a key occurs twice"),
        (with_header(b"\xff\xfe{}"), "a JSON object as the file's header"),
        (with_header(b"[" * 100_000), "nested more than 100 deep"),
        (with_header(b'{"a":' * 100_000), "nested more than 100 deep"),
        (with_header(b"1" * 100_000), "a JSON object as the file's header"),
        (with_header(b'{"a": "' + b'\\"' * 1_000_000), "a JSON object as the file's header"),
    ],
    ids=range(19),
)
def test_foreign_files_are_named(data, message, path):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        nd.load(path)


def claiming(**entry):
    settings = json.dumps({"format": 1, "sha256": "0" * 64, "prior": {}}, separators=(",", ":"))
    return {"__metadata__": {"numpyro_diffusion": settings}, "w": {"dtype": "F32", **entry}}


HUGE = [
    (2**63).to_bytes(8, "little") + b"{}" * 100,
    (2**40).to_bytes(8, "little") + b"{}" * 100,
    with_header(claiming(shape=[2**40], data_offsets=[0, 2**42]), b"\0" * 64),
    with_header(claiming(shape=[2**62, 2**62, 4], data_offsets=[0, 64]), b"\0" * 64),
    with_header(claiming(shape=[-1], data_offsets=[64, -4]), b"\0" * 64),
    with_header(claiming(shape=[1], data_offsets=[0.0, 1e300]), b"\0" * 64),
    with_header(claiming(shape=[1], data_offsets=3), b"\0" * 64),
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
    assert_cheap_error(path, "numpyro_diffusion settings")


NAMES = (
    "num_time_features",
    "num_frequencies",
    "width",
    "depth",
    "num_steps",
    "num_outputs",
    "event_dim",
    "context_dim",
)
VALUES = (2**20, 2**40, -1, 2.5, "4", None, True)
# The network fits a longer chain too, and looks at context_dim only when there is a context.
HARMLESS = {("num_steps", 2**20), ("context_dim", 2**20)}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in NAMES for value in VALUES if (name, value) not in HARMLESS]
)
def test_settings_of_a_network_are_bounded(no_type_checks, name, value, path):
    def change(prior, tensors):
        prior["network"]["settings"][name] = value

    forge(path, change, network)
    assert_cheap_error(
        path, f"{name} of MLP as an integer|a network that runs with the file's parameters|only parameters"
    )


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # names are looked up in tables, never imported
        (put("kernel", "class", value="os.system"), "a kernel out of GaussianKernel, BernoulliKernel.*'os.system'"),
        (put("estimator", "class", value="builtins.eval"), "an estimator out of .*got 'builtins.eval'"),
        (put("estimator", value={"custom": "builtins.eval"}), "an estimator out of .*got 'builtins.eval'"),
        (
            put("network", value={"class": "os.system", "settings": {}}),
            "a network out of gaussian_mixture.*'os.system'",
        ),
        (put("network", "custom", value=["os.system"]), "settings class, settings of a network"),
        (put("kernel", "class", value={"a": []}), "a kernel out of"),
        (put("is_haiku", value="yes"), "is_haiku as true or false"),
        # unknown and missing fields
        (put("extra", value=1), r"of a prior in the file's settings; got .*missing \[\], unknown \['extra'\]"),
        (drop("rng_key"), r"missing \['rng_key'\], unknown \[\]"),
        (put("kernel", "settings", "__class__", value="x"), r"of GaussianKernel.*unknown \['__class__'\]"),
        (drop("kernel", "settings", "variance"), r"of GaussianKernel.*missing \['variance'\]"),
        (drop("estimator", "settings", "num_draws"), r"of RandomStep.*missing \['num_draws'\]"),
        (put("schedule", value=[]), "settings beta, alpha_bar, noise_variance of a schedule"),
        # values
        (put("kernel", "settings", "variance", value="none"), "settings of GaussianKernel.*variance one of"),
        (put("kernel", "settings", "data_scale", value="1"), "settings of GaussianKernel"),
        (put("estimator", "settings", "num_draws", value=-1), "num_draws of RandomStep as an integer"),
        (put("event_shape", value=[2**31]), "a shape in the file's settings"),
        (put("event_shape", value=[1, "a"]), "a shape in the file's settings"),
        (put("event_shape", value=[-1]), "a tuple of positive integers"),
        (put("context_shape", value=[1]), "a context of trailing shape"),
        (put("context", value=LEAF), "a tensor 'params/gain', once"),
        (put("context", value="os.system"), "an array as context"),
        (put("batch_shape", value=[[]]), "a shape in the file's settings"),
        (put("validate_args", value="no"), "validate_args as null, true or false"),
        (put("rng_key", value={"list": [{"jax": "rng_key"}]}), "a random key in the file's settings"),
        (put("rng_key", "impl", value="os.system"), "a random key of threefry2x32"),
        (tensor("rng_key", np.zeros(3, np.uint32)), "a random key"),
        (tensor("rng_key", np.zeros(2)), "64-bit arrays|a random key"),
        (tensor("more", np.zeros(3)), r"a place for every tensor.*\['more'\]"),
        (tensor("params/gain", np.zeros(7, np.float32)), "a network that runs with the file's parameters"),
        (tensor("schedule/beta", np.zeros(7)), "as T \\+ 1 floating-point numbers"),
        (tensor("schedule/beta", np.asarray([0.0, np.nan])), r"beta in \[0, 1\]"),
        (tensor("schedule/beta", np.asarray([0, 1])), "beta as T"),
        (put("schedule", "beta", value=None), "beta as T"),
        # nodes
        (put("params", value={}), "a value in the file's settings"),
        (put("params", value=[1]), "a value in the file's settings"),
        (put("params", value={"dict": {}, "list": []}), "one kind of value"),
        (put("params", value={"dict": []}), "a dict, list, tuple or one of"),
        (put("params", value={"pickle": "params/gain"}), "a dict, list, tuple or one of"),
        (put("params", value={"jax": 3}), "a dict, list, tuple or one of"),
        (put("params", value={"dict": {"gain": {"jax": "schedule/beta"}}}), "a tensor 'schedule/beta', once; got none"),
    ],
    ids=range(41),
)
def test_a_file_can_say_only_what_a_prior_is(no_type_checks, change, message, path):
    forge(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        nd.load(path, network=plain)
    assert str(caught.value).startswith("Expected ")


def test_a_dtype_that_no_prior_has_and_booleans_that_are_none(path):
    nd.save(tiny(), path)
    with path.open("rb") as stream:
        tensors, settings = unpack(stream, path.stat().st_size)
    path.write_bytes(pack({**tensors, "more": np.zeros(2, jnp.float8_e4m3fn)}, settings))
    with pytest.raises(ValueError, match=r"a dtype out of F64, .* for 'more'; got 'F8_E4M3'"):
        nd.load(path)
    path.write_bytes(pack({**tensors, "more": np.asarray([2, 0], np.uint8).view(bool)}, settings))
    with pytest.raises(ValueError, match="only 0 and 1 for the booleans 'more'"):
        nd.load(path)


def test_a_newer_format_says_to_upgrade(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"format\\":1', b'\\"format\\":2'))
    with pytest.raises(
        ValueError, match=r"format version 1 or older; got 2, written by .*\. Upgrade numpyro-diffusion"
    ):
        nd.load(path)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a file to load; got none at .*missing"):
        nd.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="a regular file; got"):
        nd.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a regular file; got"):
        nd.load(tmp_path / "pipe")


def test_brackets_in_strings_are_no_nesting():
    _check_depth(json.dumps({'[{"\\' * 1000: ["]" * 200]}))
