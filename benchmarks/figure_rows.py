"""Which records the tables of figures show, in which words, and in which order; no figure stands here."""

from typing import NamedTuple

__all__ = ["README_ROWS", "ROWS", "Row"]


class Row(NamedTuple):
    """Records of one line.

    Attributes:
        words: what is measured, and of what.
        names: of the records; "file/name" where a name is in more than one file.
        beside: words for what the baseline is; empty for none.
        digits: decimal places.
        reach: words for the limits where each record has its own.
    """

    words: str
    names: tuple[str, ...]
    beside: str = ""
    digits: int = 2
    reach: str = ""


_TABLES = "Tables by `learn_prior`, five splits of each ([all of it](comparison.md))"

ROWS = {
    "Learned densities": (
        Row(
            "swiss roll, T = 100: true entropy less the bound, bits; with 64 trajectories",
            ("swiss_roll_gap_bits_T100", "swiss_roll_iw_gap_bits_T100"),
            "the entropy",
            digits=3,
        ),
        Row(
            "swiss roll, T = 40: the same",
            ("swiss_roll_gap_bits_T40", "swiss_roll_iw_gap_bits_T40"),
            "the entropy",
            digits=3,
        ),
        Row("binary heartbeat, T = 2000: bound K, bits", ("heartbeat_K_bits",), "the paper's", digits=3),
        Row("the same with 64 trajectories (the truth is -log2 5)", ("heartbeat_iw_bits",), digits=3),
        Row("share of 10,000 draws that are heartbeats", ("heartbeat_valid_fraction",)),
        Row(
            "noise-free swiss roll, the paper's 16 radial units, T = 40: K, bits",
            ("swiss_roll_paper_K_bits",),
            "the paper's; conditions in the README of the benchmarks",
        ),
        Row(
            "dead leaves, 32x32, the paper's network: K, bits per pixel ([conditions](paper_table.md))",
            ("dead_leaves_paper_cpu_K_bits_per_pixel",),
            "the paper's, on leaves of its own",
        ),
        Row(
            "probability flow, exact denoiser of a mixture, d = 2; 8: error of the log density, nats",
            ("mixture_pf_ode_error_nats_d2", "mixture_pf_ode_error_nats_d8"),
            digits=3,
        ),
    ),
    _TABLES: (
        Row(
            "test nats a row less those of one Gaussian: breast cancer; cars; diabetes; El Nino; Engel; penguins; "
            "Seattle's temperatures; Seattle's weather; wine",
            (
                "density_breast_cancer_minus_gaussian",
                "density_cars_minus_gaussian",
                "density_diabetes_minus_gaussian",
                "density_elnino_minus_gaussian",
                "density_engel_minus_gaussian",
                "density_penguins_minus_gaussian",
                "density_seattle_temps_minus_gaussian",
                "density_seattle_weather_minus_gaussian",
                "density_wine_minus_gaussian",
            ),
            "one Gaussian",
        ),
        Row(
            "less those of the better flow of FlowJAX at equal seconds: the same",
            (
                "density_breast_cancer_minus_flow",
                "density_cars_minus_flow",
                "density_diabetes_minus_flow",
                "density_elnino_minus_flow",
                "density_engel_minus_flow",
                "density_penguins_minus_flow",
                "density_seattle_temps_minus_flow",
                "density_seattle_weather_minus_flow",
                "density_wine_minus_flow",
            ),
            "the flow",
        ),
        Row(
            "missing cells, 17 (Engel) to 515 of a table, inside their 90% intervals by `DiffusionHMC`: the same",
            (
                "missing_breast_cancer_coverage_90",
                "missing_cars_coverage_90",
                "missing_diabetes_coverage_90",
                "missing_elnino_coverage_90",
                "missing_engel_coverage_90",
                "missing_penguins_coverage_90",
                "missing_seattle_temps_coverage_90",
                "missing_seattle_weather_coverage_90",
                "missing_wine_coverage_90",
            ),
        ),
        Row(
            "largest R-hat of these cells: the same",
            (
                "missing_breast_cancer_rhat",
                "missing_cars_rhat",
                "missing_diabetes_rhat",
                "missing_elnino_rhat",
                "missing_engel_rhat",
                "missing_penguins_rhat",
                "missing_seattle_temps_rhat",
                "missing_seattle_weather_rhat",
                "missing_wine_rhat",
            ),
            digits=3,
        ),
    ),
    "Posteriors under a mixture of 25 modes with its exact denoiser (sliced W1, 1 is as good as exact draws)": (
        Row("`TwistedSMC`, d = 8, one number observed", ("mixture_8_1_sw_over_floor",)),
        Row("the same without knowing that the noise is Gaussian", ("mixture_8_1_tempered_sw_over_floor",)),
        Row(
            "d = 8, four numbers; d = 80, one number",
            ("mixture_8_4_sw_over_floor", "mixture_80_1_sw_over_floor"),
        ),
        Row(
            "two problems each: d = 8, two numbers; d = 80, two; four",
            ("mixture_8_2_sw_over_floor", "mixture_80_2_sw_over_floor", "mixture_80_4_sw_over_floor"),
        ),
        Row(
            "two problems each, d = 800: one number; two; four",
            ("mixture_800_1_sw_over_floor", "mixture_800_2_sw_over_floor", "mixture_800_4_sw_over_floor"),
        ),
        Row(
            "to compare, d = 8, one number: DPS; PiGDM; MMPS",
            ("biased_8_1_dps_sw_over_floor", "biased_8_1_pigdm_sw_over_floor", "biased_8_1_mmps_sw_over_floor"),
            digits=0,
        ),
        Row(
            "to compare, the same: the paper's tilt, constant; annealed; exact product",
            (
                "biased_8_1_paper_constant_sw_over_floor",
                "biased_8_1_paper_annealed_sw_over_floor",
                "biased_8_1_exact_product_sw_over_floor",
            ),
            digits=0,
        ),
        Row(
            "error of the log evidence, nats: d = 8 with one number; d = 8 with four; d = 80",
            (
                "mixture_8_1_log_evidence_abs_error",
                "mixture_8_4_log_evidence_abs_error",
                "mixture_80_1_log_evidence_abs_error",
            ),
        ),
        Row(
            "`DiffusionGibbs`, 16 particles, d = 8; 80: effective draws an iteration",
            ("gibbs_8_ess_per_iteration", "gibbs_80_ess_per_iteration"),
        ),
    ),
    "Other posteriors": (
        Row(
            "unknown noise scale, `DiffusionGibbs`: W1 of its marginal, posterior sd, problems 100-103; 104-107",
            ("posterior_joint/joint_sigma_w1_over_sd", "posterior_joint_104_107/joint_sigma_w1_over_sd"),
            "as many independent exact draws",
            digits=3,
        ),
        Row(
            "the same by `TwistedSMC`, the scale drawn from its prior for each island",
            (
                "posterior_joint/joint_sigma_islands_w1_over_sd",
                "posterior_joint_104_107/joint_sigma_islands_w1_over_sd",
            ),
            "as many independent exact draws: use `DiffusionGibbs`",
            digits=3,
        ),
        Row(
            "unknown amplitude, `DiffusionGibbs`: the same",
            ("posterior_joint/joint_amplitude_w1_over_sd", "posterior_joint_104_107/joint_amplitude_w1_over_sd"),
            "as many independent exact draws",
            digits=3,
        ),
        Row(
            "ring; counts; heavy tails in the plane, generic twist: sliced W1 over that of exact draws",
            ("nonlinear_ring_sw_over_floor", "nonlinear_counts_sw_over_floor", "nonlinear_tails_sw_over_floor"),
        ),
        Row(
            "100 held-out 8x8 digits, denoised; inpainted: pixels inside their 90% intervals, `DiffusionGibbs`",
            ("digits_coverage_90_denoise_gibbs", "digits_coverage_90_inpaint_gibbs"),
        ),
        Row(
            "to compare, the same: DPS",
            ("digits_coverage_90_denoise_dps", "digits_coverage_90_inpaint_dps"),
        ),
        Row(
            "8x8 digits by a learned network, `DiffusionHMC` as it comes: effective draws per 1000 network calls, the "
            "slowest direction: noise 1; half unseen; log of an unknown noise scale",
            (
                "digits_noise1_ess_per_1000",
                "digits_half_ess_per_1000",
                "digits_unknown_noise_log_sigma_ess_per_1000",
            ),
            digits=1,
        ),
        Row("the same, 2x2 block means with noise .1", ("digits_blocks_ess_per_1000",), digits=1),
        Row(
            "784 pixels, `DiffusionHMC` as it comes, likewise: a Gaussian with a power law for spectrum, noise .3; "
            "MNIST, the lower half unseen (100 draws of each chain)",
            ("powerlaw_784_ess_per_1000", "mnist_half_ess_per_1000"),
            digits=2,
        ),
        Row(
            "largest R-hat of all pixels and projections, the same",
            ("powerlaw_784_rhat", "mnist_half_rhat"),
            digits=3,
        ),
        Row(
            "the same, guidance written by hand, another digit: noise 1; half unseen; block means",
            (
                "digits_noise1_by_hand_ess_per_1000",
                "digits_half_by_hand_ess_per_1000",
                "digits_blocks_by_hand_ess_per_1000",
            ),
            digits=1,
        ),
        Row(
            "the same as it comes, another digit: counts of the blurred digit; noise of Student's t; magnitudes of the "
            "Fourier transform, whose modes are too far apart for any chain",
            ("digits_counts_ess_per_1000", "digits_outliers_ess_per_1000", "digits_magnitudes_prior_ess_per_1000"),
            digits=3,
        ),
        Row(
            "the same: largest R-hat of four chains",
            ("digits_counts_rhat", "digits_outliers_rhat", "digits_magnitudes_prior_rhat"),
        ),
        Row(
            "the unknown noise scale: W1 of its marginal to a long run, posterior sd",
            ("digits_unknown_noise_w1_over_sd",),
            digits=3,
        ),
        Row(
            "noise level of 32 noisy digits, unknown: posterior mean at levels 0.5; 1",
            ("digits_noise_level_0.5", "digits_noise_level_1"),
            "the noise that was drawn",
            digits=3,
        ),
    ),
    "Amortised posteriors: public tasks of sbibm, 30,000 simulations, ten observations (two moons; Gaussian mixture; "
    "linear Gaussian, d = 10; slcp, d = 5)": (
        Row(
            "share that a classifier tells from 10,000 reference draws (C2ST, .5 at best): as the network draws",
            (
                "sbi_two_moons_30000_c2st",
                "sbi_gaussian_mixture_30000_c2st",
                "sbi_gaussian_linear_30000_c2st",
                "sbi_slcp_30000_c2st",
            ),
            digits=3,
        ),
        Row(
            "the same, corrected by weights on paths",
            (
                "sbi_two_moons_30000_c2st_corrected",
                "sbi_gaussian_mixture_30000_c2st_corrected",
                "sbi_gaussian_linear_30000_c2st_corrected",
                "sbi_slcp_30000_c2st_corrected",
            ),
            digits=3,
        ),
        Row(
            "effective size of these weights over draws, median",
            (
                "sbi_two_moons_30000_efficiency",
                "sbi_gaussian_mixture_30000_efficiency",
                "sbi_gaussian_linear_30000_efficiency",
                "sbi_slcp_30000_efficiency",
            ),
        ),
        Row(
            "seconds of 10,000 draws, beside other work",
            (
                "sbi_two_moons_30000_draw_seconds",
                "sbi_gaussian_mixture_30000_draw_seconds",
                "sbi_gaussian_linear_30000_draw_seconds",
                "sbi_slcp_30000_draw_seconds",
            ),
            digits=1,
        ),
        Row(
            "log evidence of the linear Gaussian, largest error in standard errors; largest standard error, nats",
            ("sbi_gaussian_linear_30000_log_evidence_in_errors", "sbi_gaussian_linear_30000_log_evidence_error"),
            digits=4,
        ),
        Row(
            "calibration by 300 simulated data sets, corrected: least p-value of all unknowns times their number",
            (
                "sbi_two_moons_30000_sbc_p_corrected",
                "sbi_gaussian_mixture_30000_sbc_p_corrected",
                "sbi_gaussian_linear_30000_sbc_p_corrected",
            ),
        ),
    ),
    "Speed and memory, over the baseline": (
        Row("SVI step on `Diffusion`", ("svi_step_ratio",), "seconds, hand-written JAX and optax"),
        Row(
            "step of `fit`, 20,000 rows: MLP, batch 512; small U-Net, batch 64; U-Net with attention",
            ("fit_step_ratio", "fit_step_ratio_unet", "fit_step_ratio_image_unet"),
            "seconds, hand-written loop",
        ),
        Row(
            "steps; draws a second, MLP of width 128",
            ("train_vs_torch_mlp", "sample_vs_torch_mlp"),
            "a second, PyTorch with diffusers",
        ),
        Row(
            "steps; draws a second, the same U-Net",
            ("train_vs_torch_unet", "sample_vs_torch_unet"),
            "a second, PyTorch with diffusers",
        ),
        Row("drawing 10,000 points", ("sample_ratio",), "seconds, hand-written scan"),
        Row(
            "compile time, T = 1000 over T = 10: `sample`; SVI step", ("compile_ratio_sample", "compile_ratio_svi_step")
        ),
        Row(
            "training memory, T = 1000 over T = 10: the program; the process",
            ("training_memory_ratio_T", "training_memory_ratio_T_process"),
            "MiB at T = 10",
        ),
        Row(
            "memory of the gradient through a whole chain of a U-Net, T = 1000 over T = 100",
            ("chain_gradient_memory_ratio_T_32x32",),
        ),
        Row(
            "exact K over the calls of the network alone: MLP; U-Net",
            ("exact_K_cost_over_network_calls_mlp", "exact_K_cost_over_network_calls_unet"),
            "seconds of the calls",
        ),
        Row(
            "a particle of `TwistedSMC` over an unconditional draw: tempered; gaussian; no twist",
            ("smc_time_ratio_tempered", "smc_time_ratio_gaussian", "smc_time_ratio_none"),
        ),
        Row("`import numpyro_diffusion` over `import numpyro`", ("import_time_ratio",), "seconds, `import numpyro`"),
        Row("trainings killed at random moments that end with the same bits, of 20", ("kill_resumes",), digits=0),
    ),
}

README_ROWS = {
    "": (
        Row(
            "nine real tables by `learn_prior`: test nats a row less those of one Gaussian",
            ROWS[_TABLES][0].names,
            digits=1,
            reach=">= 0 within one standard error",
        ),
        Row(
            "the same, less those of the better flow of FlowJAX at equal seconds",
            ROWS[_TABLES][1].names,
            digits=1,
        ),
        Row("their missing cells inside 90% intervals", ROWS[_TABLES][2].names),
        Row("swiss roll, T = 100: true entropy less the bound K, bits", ("swiss_roll_gap_bits_T100",), digits=3),
        Row(
            "posterior of a mixture of 25 modes, d = 8: sliced W1 over that of exact draws, `TwistedSMC`",
            ("mixture_8_1_sw_over_floor",),
        ),
        Row(
            "to compare, the same: DPS; PiGDM; MMPS",
            ("biased_8_1_dps_sw_over_floor", "biased_8_1_pigdm_sw_over_floor", "biased_8_1_mmps_sw_over_floor"),
            digits=0,
        ),
        Row(
            "error of the log evidence, nats: d = 8; d = 80",
            ("mixture_8_1_log_evidence_abs_error", "mixture_80_1_log_evidence_abs_error"),
        ),
        Row(
            "784 pixels, `DiffusionHMC` as it comes, a Gaussian with a power law for spectrum: effective draws per "
            "1000 network calls, slowest direction; largest R-hat",
            ("powerlaw_784_ess_per_1000", "powerlaw_784_rhat"),
        ),
        Row(
            "amortised posteriors, corrected: share that a classifier tells from reference draws (.5 at best), two "
            "moons; Gaussian mixture; linear Gaussian; slcp",
            (
                "sbi_two_moons_30000_c2st_corrected",
                "sbi_gaussian_mixture_30000_c2st_corrected",
                "sbi_gaussian_linear_30000_c2st_corrected",
                "sbi_slcp_30000_c2st_corrected",
            ),
        ),
        Row("step of `fit` over a loop by hand in JAX: MLP; U-Net", ("fit_step_ratio", "fit_step_ratio_unet")),
        Row(
            "steps; draws a second over PyTorch with diffusers: MLP",
            ("train_vs_torch_mlp", "sample_vs_torch_mlp"),
        ),
        Row("the same: small U-Net", ("train_vs_torch_unet", "sample_vs_torch_unet")),
    ),
}
