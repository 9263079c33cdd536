"""Files of libraries: transformers, accelerate, peft, huggingface_hub, safetensors."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from common import Case, kept, make_net
from torch import nn

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}


def _make_clip() -> nn.Module:
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


def clip(folder: Path) -> list[Case]:
    """CLIPModel.save_pretrained, whole and in shards; its own forward is the truth."""
    from transformers import CLIPConfig, CLIPModel

    from landscape.clip.checkpoint import load_checkpoint

    config = CLIPConfig(
        text_config={**_TOWER, "vocab_size": 60, "max_position_embeddings": 12, "eos_token_id": 59},
        vision_config={**_TOWER, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    hf = CLIPModel(config).eval()
    for parameter in hf.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    hf.save_pretrained(folder / "whole")
    hf.save_pretrained(folder / "shards", max_shard_size="20KB")
    model = _make_clip()
    load_checkpoint(model, folder / "whole")
    pictures, texts = torch.randn(3, 3, 16, 16), torch.randint(1, 59, (3, 12))
    texts[:, -1] = 59
    with torch.no_grad():
        theirs = hf(pixel_values=pictures, input_ids=texts)
        image, text, scale = model(pictures, texts)
    torch.testing.assert_close(image, theirs.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, theirs.text_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        scale * image @ text.T, theirs.logits_per_image, rtol=1e-4, atol=1e-4
    )
    state = kept(model)
    return [
        Case(
            what="CLIPModel.save_pretrained (forward equal)",
            path=folder / "whole/model.safetensors",
            copies={"online": state},
            make=_make_clip,
        ),
        Case(
            what="the same in shards, the folder",
            path=folder / "shards",
            copies={"online": state},
            make=_make_clip,
        ),
        Case(
            what="the same, its index",
            path=folder / "shards/model.safetensors.index.json",
            copies={"online": state},
            make=_make_clip,
        ),
        Case(
            what="one shard",
            path=next((folder / "shards").glob("*-of-*.safetensors")),
            refused="Name the index",
            make=_make_clip,
        ),
    ]


def gpt2(folder: Path) -> list[Case]:
    """Tied weights, which save_pretrained leaves out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder / "gpt2")
    return [
        Case(
            what="GPT2LMHeadModel, tied lm_head left out",
            path=folder / "gpt2",
            copies={"online": kept(model)},
            make=lambda: GPT2LMHeadModel(config),
        )
    ]


def accelerate(folder: Path) -> list[Case]:
    """save_state."""
    from accelerate import Accelerator

    accelerator, net = Accelerator(cpu=True), make_net()
    prepared = accelerator.prepare(net)
    accelerator.save_state(str(folder / "safe"))
    accelerator.save_state(str(folder / "bin"), safe_serialization=False)
    return [
        Case(what=f"save_state, {name}", path=folder / name, copies={"online": kept(prepared)})
        for name in ("safe", "bin")
    ]


def peft(folder: Path) -> list[Case]:
    """An adapter, and the model after merging."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_net(), LoraConfig(target_modules=["0", "3"], r=2))
    model.save_pretrained(folder / "adapter")
    torch.save(model.state_dict(), folder / "full.pt")
    torch.save(model.merge_and_unload().state_dict(), folder / "merged.pt")
    return [
        Case(
            what="adapter_model.safetensors",
            path=folder / "adapter/adapter_model.safetensors",
            refused="merge_and_unload",
        ),
        Case(
            what="state_dict() with adapters", path=folder / "full.pt", refused="merge_and_unload"
        ),
        Case(
            what="merged",
            path=folder / "merged.pt",
            copies={"online": kept(model.merge_and_unload())},
        ),
    ]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, *, tie: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        if tie:
            self.b.weight = self.a.weight


def hub(folder: Path) -> list[Case]:
    """save_torch_model, whole and in shards: aliases of tied weights stand in the metadata."""
    from huggingface_hub import save_torch_model

    model = Tied()
    for name, size in (("one", "1GB"), ("shards", "1KB")):
        (folder / name).mkdir()
        save_torch_model(model, folder / name, max_shard_size=size)
    return [
        Case(
            what=f"save_torch_model, {name}, {said}",
            path=folder / name,
            copies={"online": kept(model)},
            make=make,
        )
        for name in ("one", "shards")
        for said, make in (
            ("model that ties", Tied),
            ("model that does not", lambda: Tied(tie=False)),
        )
    ]


def safetensors(folder: Path) -> list[Case]:
    """save_model of tied weights, and a header whose length begins with 0x80."""
    from safetensors.torch import save_file, save_model

    model, net = Tied(), make_net()
    save_model(model, folder / "tied.safetensors")
    for pad in range(256):
        save_file(net.state_dict(), folder / "80.safetensors", metadata={"pad": "x" * pad})
        if (folder / "80.safetensors").read_bytes()[:1] == b"\x80":
            break
    return [
        Case(
            what="save_model, tied",
            path=folder / "tied.safetensors",
            copies={"online": kept(model)},
            make=lambda: Tied(tie=False),
        ),
        Case(
            what="a header of 0x..80 bytes",
            path=folder / "80.safetensors",
            copies={"online": kept(net)},
        ),
    ]


WRITERS: tuple[tuple[str, Callable[[Path], list[Case]]], ...] = (
    ("transformers CLIP", clip),
    ("transformers GPT-2", gpt2),
    ("accelerate", accelerate),
    ("peft", peft),
    ("huggingface_hub", hub),
    ("safetensors", safetensors),
)
