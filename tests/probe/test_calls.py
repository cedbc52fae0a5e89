"""How the preconditioner may be called, and what it does with arguments that stand in each other's place."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from ostate.errors import ProbeError
from ostate.probe import AdamPreconditioner, Guards, lora_adamw

from .training import trainables

GUARDS = {"default": Guards(), "seed": Guards.seed(), "zero": Guards(fallback="zero"), "unknown passes": Guards(unknown="identity")}


@pytest.fixture
def filled_model(run):
    model = copy.deepcopy(run[0])
    return model, lora_adamw(model, run[2])


@pytest.mark.parametrize("guards", GUARDS)
def test_gradient_and_parameter_in_the_other_order_give_the_same_number_and_never_the_parameter(filled_model, guards, caplog):
    model, optimizer = filled_model
    pre = AdamPreconditioner(optimizer, guards=GUARDS[guards])
    for name, parameter in trainables(model)[:4]:
        gradient = torch.randn_like(parameter)
        want = pre.apply_preconditioner(parameter, gradient)
        for second in (parameter, name):
            got = pre.apply_preconditioner(gradient, second)
            assert got is not parameter
            assert torch.equal(got, want)
        assert not torch.equal(want, gradient)
    assert caplog.text.count("given (gradient, parameter)") == 1


@pytest.mark.parametrize("guards", GUARDS)
def test_a_parameter_in_its_gradients_place_is_refused(filled_model, guards):
    model, optimizer = filled_model
    pre = AdamPreconditioner(optimizer, guards=GUARDS[guards])
    parameter = trainables(model)[0][1]
    for first in (parameter, trainables(model)[0][0]):
        with pytest.raises(ProbeError, match="a parameter was given in the gradient's place"):
            pre.apply(first, parameter)
    with pytest.raises(ProbeError, match="the gradient is a NoneType") as error:
        pre.apply(parameter, None)
    assert isinstance(error.value, TypeError)


def test_of_a_parameter_that_nobody_knows_only_the_gradient_comes_back(filled_model):
    model, optimizer = filled_model
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    gradient = torch.randn_like(frozen)
    pre = AdamPreconditioner(optimizer, guards=Guards.seed())
    assert pre.apply(frozen, gradient) is gradient
    assert pre.apply(gradient, frozen) is gradient
    assert pre.apply("nobody", gradient) is gradient
    for pair in ((gradient, gradient.clone()), (frozen, torch.nn.Parameter(gradient.clone()))):
        with pytest.raises(ProbeError, match="it is not clear which one is the gradient"):
            pre.apply(*pair)
    strict = AdamPreconditioner(optimizer)
    for pair in ((frozen, gradient), (gradient, frozen)):
        with pytest.raises(ProbeError, match="is not one of the 28 parameters"):
            strict.apply(*pair)


def test_the_optimizer_may_come_by_keyword(filled_model):
    _, optimizer = filled_model
    assert torch.equal(AdamPreconditioner(optimizer=optimizer).scale[0], AdamPreconditioner(optimizer).scale[0])


WRONG = [
    ((), {}, "one optimizer or one named state"),
    (("optimizer",), {"optimizer": "optimizer"}, "one optimizer or one named state"),
    (("lora.ostate.safetensors",), {}, "a str keeps no moments"),
    (("optimizer", {"eps": 1e-8}), {}, "logger must be a logging.Logger, not a dict"),
    (("optimizer", None, logging.getLogger("x")), {}, "checkpoint_step must be a number, not a Logger"),
    (("optimizer",), {"checkpoint_step": True}, "checkpoint_step must be a number, not a bool"),
    (("optimizer",), {"guards": {"max_scale": 1e3}}, "guards must be a Guards, not a dict"),
]


@pytest.mark.parametrize(("places", "named", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_an_argument_in_anothers_place_is_a_type_error_that_names_it(filled_model, places, named, message):
    _, optimizer = filled_model
    places = [optimizer if value == "optimizer" else value for value in places]
    named = {key: optimizer if value == "optimizer" else value for key, value in named.items()}
    with pytest.raises(ProbeError, match=message) as error:
        AdamPreconditioner(*places, **named)
    assert isinstance(error.value, TypeError)
