"""What fit refuses before the first step, with the cure: latent sites without a guide, parameters of single rows,
sites that do not stand for all rows, values that are not finite."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from measured_errors import check, of_independent
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal

import numpyro_diffusion as nd
from numpyro_diffusion.data_scale import check_data_erased
from numpyro_diffusion.training.checks import ModelChecks

SIZE, ROWS = 20, 5
DATA = np.asarray(jax.random.normal(jax.random.key(0), (SIZE, 2)))
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(3))


def shifted(params, x_t, t, context):
    return x_t - params, 0 * x_t


def diffusion(kernel=KERNEL, rng_key=None):
    transition = nd.Transition(shifted, numpyro.param("shift", jnp.zeros(2)), (2,))
    return nd.Diffusion(kernel, transition, rng_key=rng_key)


def train(model, data=DATA, guide=None, **changes):
    settings = {"optimizer": optax.adam(1e-3), "num_steps": 1, "batch_size": ROWS, "progress_bar": False}
    return nd.fit(model, data, guide=guide, rng_key=jax.random.key(1), **{**settings, **changes})


def observed(x, size):
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("x", diffusion(), obs=x)


# Latent sites without a guide ---------------------------------------------------------------------------


def latent(x, size):
    with numpyro.plate("data", size, subsample_size=len(x)):
        clean = numpyro.sample("clean", diffusion())
        numpyro.sample("x", dist.Normal(clean, 0.1).to_event(1), obs=x)


def test_a_latent_diffusion_without_a_guide_is_refused():
    with pytest.raises(ValueError, match=r"a guide for the latent diffusion site 'clean'; got none.*pass guide="):
        train(latent)


def test_a_latent_diffusion_that_the_guide_leaves_out_is_refused():
    def guide(x, size):
        numpyro.sample("other", dist.Normal(0, 1))

    with pytest.raises(ValueError, match=r"a guide for the latent diffusion site 'clean'; got one of \['other'\]"):
        train(latent, guide=guide)


def test_an_obs_mask_is_refused_as_such():
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", diffusion(), obs=x, obs_mask=x[:, 0] > 0)

    with pytest.raises(ValueError, match=r"no obs_mask at the site 'x'; got one\. Train on the rows that were seen"):
        train(model)


def test_any_latent_site_without_a_guide_is_refused():
    def model(x, size):
        scale = numpyro.sample("scale", dist.LogNormal(0, 1))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(0, scale).expand((2,)).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"a guide for the latent site 'scale'; got none"):
        train(model)
    assert np.isfinite(train(model, guide=AutoNormal(model)).losses).all()


def test_a_latent_site_that_is_summed_out_needs_no_guide():
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            kind = numpyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(jnp.asarray([-1.0, 1.0])[kind], 1.0), obs=x[:, 0])

    ModelChecks(model, None, {}, DATA[:ROWS], SIZE).check_scale()  # TraceEnum_ELBO itself needs funsor


# Parameters that belong to single rows -----------------------------------------------------------------


def local(x, size):
    """A latent of its own for each row; the prior, with parameters, is where it comes from."""
    with numpyro.plate("data", size, subsample_size=len(x)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))
        numpyro.sample("x", dist.Normal(z[:, None], 0.1).expand((len(x), 2)).to_event(1), obs=x)


def by_index(x, size):
    loc = numpyro.param("locs", jnp.zeros(size))
    with numpyro.plate("data", size, subsample_size=len(x)) as index:
        numpyro.sample("z", dist.Normal(loc[index], 0.1))


def by_place(x, size):
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("locs", jnp.zeros(len(x))), 0.1))


def the_same_for_all(x, size):
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("z", dist.Normal(numpyro.param("guess", 0.0), 1.0))


@pytest.mark.parametrize("guide", [AutoNormal(local), AutoDelta(local), by_index], ids=["normal", "delta", "by hand"])
def test_parameters_that_the_plate_picks_by_its_own_indices_are_refused(guide):
    with pytest.raises(
        ValueError,
        match=r"rows of the batch at site 'x' of the model; got values at \['z'\] that the plate's own "
        r"indices pick.*a function of the batch",
    ):
        train(local, guide=guide)


def test_the_guide_of_a_diffusion_for_each_row_is_refused():
    def noisy(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            clean = numpyro.sample("clean", diffusion())
            numpyro.sample("x", dist.Normal(clean, 0.1).to_event(1), obs=x)

    guide = nd.infer.AutoDiffusionGuide(noisy)
    with pytest.raises(ValueError, match=r"at site 'x' of the model; got values at \['clean_noise'\]"):
        train(guide.model, guide=guide)


def test_parameters_for_each_place_in_the_batch_are_refused():
    with pytest.raises(
        ValueError, match=r"a distribution of the batch at site 'z' of the guide; got one for each place"
    ):
        train(local, guide=by_place)


def scaled_by_hand(x, size):
    with numpyro.handlers.scale(scale=size / len(x)), numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z[:, None], 0.1).expand((len(x), 2)).to_event(1), obs=x)


@pytest.mark.parametrize("auto", [AutoNormal, AutoDiagonalNormal])
def test_parameters_for_each_place_in_a_plate_scaled_by_hand_are_refused(auto):
    with pytest.raises(ValueError, match=r"at site 'z' of the guide; got one for each place in plate 'data'"):
        train(scaled_by_hand, guide=auto(scaled_by_hand))


def test_a_guide_that_sees_its_rows_is_trained_to_the_posterior():
    """Eight times the same question, each with draws of its own: their spread is the error."""

    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand((8,)).to_event(1))
            numpyro.sample("x", dist.Normal(z[:, :, None], 0.1).to_event(2), obs=jnp.stack([x] * 8, 1))

    def guide(x, size):
        gain, width = numpyro.param("gain", jnp.zeros(8)), numpyro.param("width", jnp.ones(8))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("z", dist.Normal(gain * x.mean(-1)[:, None], width).to_event(1))

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 400))
    params = train(model, guide=guide, num_steps=400, optimizer=optimizer).params
    check(of_independent(params["gain"]), 200 / 201, refused=0.0)  # two numbers of precision 100, a prior of 1
    check(of_independent(params["width"]), 201**-0.5, refused=1.0)


def test_a_guide_that_is_the_same_for_all_rows_is_trained():
    fitted = train(local, guide=the_same_for_all, num_steps=400, optimizer=optax.adam(3e-2))
    assert set(fitted.params) == {"loc", "guess"}
    assert np.isfinite(fitted.losses).all()


def check_rows(found, wanted):
    """One number for each row, up to the noise of training: neither all the same nor paired with other rows."""
    found, wanted = np.asarray(found, float), wanted - wanted.mean()
    check(of_independent((found - found.mean() - wanted) * wanted), 0.0, refused=-(wanted**2).mean())


def test_all_rows_in_order_may_have_parameters_of_their_own():
    fitted = train(local, guide=AutoNormal(local), batch_size=SIZE, num_steps=600, optimizer=optax.adam(3e-2))
    check_rows(fitted.params["z_auto_loc"], (200 * DATA.mean(1) + DATA.mean()) / 201)


def test_parameters_for_each_row_are_refused_beside_validation_data():
    with pytest.raises(ValueError, match=r"at site 'z' of the guide; got one for each place.*no validation"):
        train(local, guide=AutoNormal(local), batch_size=SIZE, validation=DATA[:3])


def test_a_latent_for_each_of_as_many_columns_as_rows_is_no_latent_of_a_row():
    data = np.ones((SIZE, ROWS), np.float32)

    def model(x, size):
        with numpyro.plate("columns", ROWS, dim=-1):
            loc = numpyro.sample("loc", dist.Normal(0, 1))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    assert np.isfinite(train(model, data, guide=AutoNormal(model)).losses).all()


def test_data_that_the_plate_indexes_may_have_parameters_that_it_indexes():
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.1), obs=jnp.asarray(DATA)[index, 0])

    optimizer = optax.adam(optax.cosine_decay_schedule(5e-2, 1500))
    fitted = train(model, guide=AutoNormal(model), num_steps=1500, optimizer=optimizer, loss=Trace_ELBO(8))
    check_rows(fitted.params["z_auto_loc"], DATA[:, 0] / 1.01)


# Sites that do not stand for all rows ------------------------------------------------------------------


def test_a_plate_of_the_batch_alone_is_refused():
    def model(x, size):
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", diffusion(), obs=x)

    with pytest.raises(
        ValueError,
        match=r"site 'x' of the model to stand for all 20 rows, scale 4; got scale 1 for 5 rows in plate 'rows' of 5\. "
        r"Write numpyro\.plate\(name, size, subsample_size=len\(batch\)\)",
    ):
        train(model)


@pytest.mark.parametrize(
    ("size", "found"), [(lambda size: size, "'rows' of 20"), (lambda size: 10, "'rows' of 10")], ids=["all", "other"]
)
def test_a_plate_of_another_number_of_rows_is_refused(size, found):
    def model(x, num_rows):
        with numpyro.plate("rows", size(num_rows), subsample_size=None if size(num_rows) == SIZE else len(x)):
            numpyro.sample(
                "x", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=x[0, 0] if found == "'rows' of 20" else x[:, 0]
            )

    with pytest.raises(ValueError, match=rf"site 'x' of the model to stand for all 20 rows.* in plate {found}"):
        train(model)


def test_a_site_outside_of_any_plate_is_refused():
    def model(x, size):
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0).expand(x.shape).to_event(2), obs=x)

    with pytest.raises(ValueError, match=r"site 'x' of the model .* scale 4; got scale 1 for 5 rows in no plate"):
        train(model)


def test_a_guide_outside_of_the_plate_is_refused():
    def guide(x, size):
        numpyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    with pytest.raises(ValueError, match=r"site 'z' of the guide to stand for all 20 rows"):
        train(local, guide=guide)


def by_scale(x, size):
    with numpyro.handlers.scale(scale=jnp.asarray(size) / len(x)), numpyro.plate("rows", len(x)):
        numpyro.sample("x", diffusion(), obs=x)


def half_as_much(x, size):
    with numpyro.handlers.scale(scale=0.5):
        observed(x, size)


def by_factor(x, size):
    numpyro.factor("x", -size * ((numpyro.param("m", 0.0) - x) ** 2).mean())


def without_the_batch(x, size):
    observed(x, size)
    numpyro.sample("prior", dist.Normal(0.0, 1.0), obs=numpyro.param("w", 0.0))


@pytest.mark.parametrize("model", [observed, by_scale, half_as_much, by_factor, without_the_batch])
def test_other_ways_to_stand_for_all_rows_are_trained(model):
    assert np.isfinite(train(model).losses).all()


def test_the_loss_by_scale_is_the_loss_by_plate_and_on_average_that_of_all_rows():
    def numbers(x):
        numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=x[:, 0])

    def plate(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numbers(x)

    def scale(x, size):
        with numpyro.handlers.scale(scale=size / len(x)), numpyro.plate("rows", len(x)):
            numbers(x)

    settings = {"num_steps": 2000, "optimizer": optax.sgd(0.0)}
    losses = train(plate, **settings).losses
    np.testing.assert_allclose(train(scale, **settings).losses, losses, rtol=1e-5)
    of_rows = DATA[:, 0] ** 2 / 2 + np.log(2 * np.pi) / 2
    assert abs(losses.mean() - of_rows.mean()) < 5 * of_rows.std() / np.sqrt(2000 * ROWS)


def test_a_batch_of_all_rows_stands_for_itself():
    def model(x, size):
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0).expand((2,)).to_event(1), obs=x)

    losses = train(model, batch_size=SIZE, num_steps=3, optimizer=optax.sgd(0.0)).losses
    np.testing.assert_allclose(losses, (DATA**2 / 2 + np.log(2 * np.pi) / 2).sum() / SIZE, rtol=1e-5)


# Values -------------------------------------------------------------------------------------------------


def with_bad(index, value, dtype=np.float32):
    data = DATA.astype(dtype)
    data[index] = value
    return data


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_with_site_and_index(value):
    with pytest.raises(
        ValueError,
        match=rf"finite values at site 'x'; got {value} at row 17, column 1 of the data\. Remove or impute such rows",
    ):
        train(observed, with_bad((17, 1), value))


def test_they_are_named_in_arrays_on_disk_in_any_chunk(tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["numpyro_diffusion.training.sources"], "_LOOK_BYTES", 64)
    np.save(tmp_path / "x.npy", with_bad((13, 0), np.nan))
    with pytest.raises(ValueError, match=r"finite values at site 'x'; got nan at row 13, column 0 of the data"):
        train(observed, np.load(tmp_path / "x.npy", mmap_mode="r"))


def test_they_are_named_in_trees_contexts_validation_data_and_first_batches():
    def of_two(batch, size):
        with numpyro.plate("data", size, subsample_size=len(batch["x"])):
            numpyro.sample("y", dist.Normal(numpyro.param("m", 0.0) * batch["c"][:, 0], 1.0), obs=batch["x"][:, 0])

    with pytest.raises(ValueError, match=r"at site 'y'; got nan at row 3, column 0 of \['c'\] of the data"):
        train(of_two, {"x": DATA, "c": with_bad((3, 0), np.nan)})
    with pytest.raises(ValueError, match=r"at site 'x'; got nan at row 1, column 0 of the validation data"):
        train(observed, validation=with_bad((1, 0), np.nan))
    with pytest.raises(ValueError, match=r"at site 'x'; got one in the first batch of the data"):
        train(observed, iter([with_bad((1, 0), np.nan)[:ROWS]]), size=SIZE)


def test_missing_values_that_the_model_replaces_are_trained_on():
    def model(x, size):
        is_seen = ~jnp.isnan(x[:, 0])
        with numpyro.plate("data", size, subsample_size=len(x)), numpyro.handlers.mask(mask=is_seen):
            numpyro.sample("x", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=jnp.where(is_seen, x[:, 0], 0.0))

    assert np.isfinite(train(model, with_bad((slice(0, 9), 0), np.nan)).losses).all()


def test_values_behind_a_mask_of_the_model_s_own_are_trained_on():
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample(
                "x", dist.Normal(numpyro.param("m", jnp.zeros(2)), 1.0).mask(~jnp.isnan(x)).to_event(1), obs=x
            )

    data = with_bad((slice(0, 9), 0), np.nan)
    settings = {"num_steps": 300, "batch_size": SIZE, "optimizer": optax.adam(0.1)}
    np.testing.assert_allclose(train(model, data, **settings).params["m"], np.nanmean(data, axis=0), atol=1e-3)


def test_a_bad_value_is_found_behind_any_number_of_rows_that_the_model_makes_good():
    """Every row misses a number that the model replaces; one of them has another, which it does not."""

    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("first", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=jnp.nan_to_num(x[:, 0]))
            numpyro.sample("second", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=x[:, 1])

    data = with_bad((slice(None), 0), np.nan)
    assert np.isfinite(train(model, data).losses).all()
    data[17, 1] = np.inf
    with pytest.raises(ValueError, match=r"finite values at site 'second'; got nan and inf at row 17, columns 0, 1"):
        train(model, data)


def test_a_kernel_that_leaves_the_data_visible_warns():
    short = nd.GaussianKernel(nd.schedules.log_snr(3, sigma_max=10.0))

    def model(x, size):
        spread = dist.transforms.AffineTransform(5.0, 100.0)
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", dist.TransformedDistribution(diffusion(short), spread), obs=x)

    with pytest.warns(UserWarning, match=r"sqrt\(abar_T\) \* data_scale <= 0\.1; got 0\.398"):
        train(model, 400 * np.sign(DATA) + 5)  # 4 in the units of the kernel
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, 40 * np.sign(DATA) + 5)


def test_the_rule_for_real_numbers_does_not_judge_bits():
    schedule = nd.schedules.linear(3, beta_max=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_data_erased(nd.BernoulliKernel(schedule), np.ones((4, 2)))
    with pytest.warns(UserWarning, match=r"sqrt\(abar_T\) \* data_scale"):
        check_data_erased(nd.GaussianKernel(schedule), np.ones((4, 2)))


# Masks ---------------------------------------------------------------------------------------------------


def masked(is_seen):
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", diffusion().mask(is_seen(x)), obs=x)

    return model


def test_masks_that_leave_nothing_to_learn_from_are_refused():
    with pytest.raises(ValueError, match=r"that masks let through at site 'x'; got False for all rows\. Nothing"):
        train(masked(lambda x: jnp.zeros(len(x), bool)))


def test_one_row_that_is_seen_is_enough():
    assert np.isfinite(train(masked(lambda x: x[:, 0] == DATA[17, 0])).losses[-1])
