import math

import pytest
import torch

from hf_vlm import DVAEConfig, DVAEModel, VAEConfig, VAEModel, VQVAEConfig, VQVAEModel
from hf_vlm.training.trainers.schedules import Schedule, check_schedules


def test_constant_stays():
    schedule = Schedule(kind="constant", start=0.3)
    assert [schedule.value(step) for step in (0, 1, 10**7)] == [0.3, 0.3, 0.3]


def test_linear_and_cosine_meet_at_start_middle_and_end_and_stay_there():
    linear = Schedule(kind="linear", start=1, end=0.5, num_steps=100)
    cosine = Schedule(kind="cosine", start=1, end=0.5, num_steps=100)
    for schedule in (linear, cosine):
        assert [schedule.value(step) for step in (0, 50, 100, 5000)] == pytest.approx([1, 0.75, 0.5, 0.5])
    assert linear.value(25) == pytest.approx(0.875)
    assert cosine.value(25) == pytest.approx(0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2)


def test_exponential_falls_to_its_floor_in_steps_of_every():
    # Jang et al. 2017: max(0.5, exp(-r t)), updated every N steps
    schedule = Schedule(kind="exponential", start=1.0, end=0.5, rate=1e-3, every=500)
    assert schedule.value(499) == 1.0
    assert schedule.value(500) == schedule.value(999) == pytest.approx(math.exp(-0.5))
    assert schedule.value(1000) == 0.5


def test_temperature_of_dalle_at_its_published_steps():
    # appendix A.2: 1 to 1/16 over 150,000 updates
    schedule = Schedule(kind="cosine", start=1.0, end=1 / 16, num_steps=150_000)
    assert schedule.value(75_000) == pytest.approx((1 + 1 / 16) / 2)
    assert schedule.value(150_000) == schedule.value(3_000_000) == 1 / 16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "linear", "start": 1}, "wants `start`, `end`, `num_steps`, got `start`"),
        ({"kind": "constant", "start": 1, "end": 2}, "wants `start`, got `start`, `end`"),
        ({"kind": "exponential", "start": 1, "end": 0.5, "rate": 0}, "`rate` must be above 0"),
        ({"kind": "cosine", "start": 1, "end": 0.5, "num_steps": 0}, "`num_steps` must be 1 or more"),
        ({"kind": "constant", "start": 1, "every": 0}, "`every` must be 1 step or more"),
    ],
)
def test_incomplete_schedule_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        Schedule(**settings)


def test_schedules_of_values_that_a_model_lacks_or_refuses_are_refused():
    constant = Schedule(kind="constant", start=0.5)
    check_schedules(DVAEModel(DVAEConfig()), {"temperature": constant, "kl_weight": constant})
    with pytest.raises(ValueError, match="`beta`, got `temperature`"):
        check_schedules(VAEModel(VAEConfig()), {"temperature": constant})
    with pytest.raises(ValueError, match="of which there are none, got `beta`"):
        check_schedules(VQVAEModel(VQVAEConfig()), {"beta": constant})
    with pytest.raises(ValueError, match="deterministic autoencoder has no KL term"):
        check_schedules(VAEModel(VAEConfig(beta=0)), {"beta": constant})
    to_zero = Schedule(kind="linear", start=1, end=0, num_steps=10)
    with pytest.raises(ValueError, match="`temperature` must be above 0, got 0"):
        check_schedules(DVAEModel(DVAEConfig()), {"temperature": to_zero})


def test_checked_model_has_the_first_values():
    model = DVAEModel(DVAEConfig())
    check_schedules(model, {"temperature": Schedule(kind="linear", start=2, end=0.5, num_steps=10)})
    assert model.config.temperature == 2
    assert torch.equal(model.temperature, torch.tensor(2.0))
