"""Every tuner of LyCORIS over a tiny U-Net: the order in which its modules hold their tensors, and which of the file's tensors are trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ostate.core.naming import Question
from ostate.ordering import claims
from ostate.ordering.keys import match_all
from ostate.read import read
from ostate.read.adapters import for_state, read_adapter
from tests.ordering.pipelines import unet, write_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")
TUNERS = {
    "ia3": {"algo": "ia3"},
    "full": {"algo": "full"},
    "diag-oft": {"algo": "diag-oft"},
    "glora": {"algo": "glora"},
    "dora": {"algo": "locon", "weight_decompose": True},
    "dora of loha": {"algo": "loha", "weight_decompose": True},
    "norms too": {"algo": "locon", "train_norm": True},
    "dylora": {"algo": "dylora", "block_size": 2},
}


def _saved(name: str) -> str:
    """Return the key under which LyCORIS saves a live name of its `full`, which keeps the change and not the weight."""
    return re.sub(r"\.weight$", ".diff", re.sub(r"\.bias$", ".diff_b", name))


@pytest.mark.parametrize("tuner", TUNERS)
def test_the_order_is_the_models_with_each_modules_tensors_as_its_own_named_parameters_gives_them(tuner: str, tmp_path: Path):
    import lycoris

    torch.manual_seed(0)
    model = unet()
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Attention", "FeedForward"], "target_name": []})
    net = lycoris.create_lycoris(model, 1.0, linear_dim=4, linear_alpha=4, **TUNERS[tuner])
    net.apply_to()
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([parameter for _, parameter in named])
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in net.state_dict().items()}, tmp_path / "lora.safetensors")
    raw = read(str(tmp_path / "optimizer.pt"))
    adapter = for_state(read_adapter(str(tmp_path / "lora.safetensors")), raw)
    base = write_pipeline(tmp_path / "base", unet=unet())
    found, lost = claims(Question(raw=raw, adapter=adapter, base=str(base)), sources={"skeleton"})
    order = [_saved(name) if tuner == "full" else name for name, _ in named]
    assert order in [list(claim.keys) for claim in found], lost
    if tuner == "full":  # saved as the difference, under another name
        live = tuple(name for name, _ in named)
        assert live in [claim.names for claim in found]
        assert list(match_all(live, adapter)[0]) == order
    assert ("not the file's" in " ".join(adapter.assumed)) == (tuner == "dylora")
