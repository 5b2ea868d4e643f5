"""Tiny text-conditional models with random weights: Stable Diffusion's parts, and one of images."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from sidepipe.models.text.model import TextModel
from sidepipe.models.text.words import word_tokenizer

CAPTIONS = ["a bold seven by the harbour", "a faint two at noon", "marigold"]
WIDTH, MAX_TOKENS, POOLED = 8, 10, 24
WIDE = 32  # of T5, wider than both CLIP encoders together
NOTHING = [None, None]
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")


def text_encoder(num_words, max_tokens=MAX_TOKENS, end=2, kind=CLIPTextModel, **changes):
    """A CLIPTextModel of one layer."""
    config = {
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        **changes,
    }
    return kind(
        CLIPTextConfig(
            vocab_size=num_words,
            max_position_embeddings=max_tokens,
            bos_token_id=1,
            eos_token_id=end,
            pad_token_id=0,
            **config,
        )
    )


def unet(channels, size, width=WIDTH, **changes):
    """A UNet2DConditionModel with cross-attention at its lower resolution."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=2,
        **changes,
    )


def tiny_text_model(size=8, seed=0):
    """An in-memory model of gray images of `size` pixels."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(CAPTIONS, MAX_TOKENS)
    parts = {"unet": None, "scheduler": DDPMScheduler(num_train_timesteps=100)}
    parts |= {"text_encoder": text_encoder(len(tokenizer)), "tokenizer": tokenizer}
    return TextModel({**parts, "unet": unet(1, size)}).eval().requires_grad_(False)


def tiny_stable_diffusion(folder, seed=0, prediction_type="epsilon"):
    """StableDiffusionPipeline's files with random weights: latents 4 x 4 x 4, images 8 x 8."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(folder)
    parts = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(len(tokenizer), 77, end=tokenizer.eos_token_id),
        "tokenizer": tokenizer,
        "unet": unet(4, 4),
        "scheduler": schedule(
            set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type
        ),
    }
    nothing = {name: [None, None] for name in NOT_NEEDED}
    return saved(folder, parts, _class_name="StableDiffusionPipeline", **nothing)


def tiny_sdxl(folder, seed=0, **settings):
    """StableDiffusionXLPipeline's files with random weights: latents 4 x 4 x 4, images 8 x 8.

    Its encoders have different widths, and the pooled embedding is wider than both together.
    """
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(folder)
    words, end = len(tokenizer), tokenizer.eos_token_id
    parts = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(words, 77, end, num_hidden_layers=2),
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder(
            *(words, 77, end, CLIPTextModelWithProjection),
            num_hidden_layers=3,
            hidden_size=12,
            projection_dim=POOLED,
        ),
        "tokenizer_2": tokenizer,
        "unet": unet(
            4,
            4,
            width=WIDTH + 12,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + POOLED,
        ),
        "scheduler": schedule(steps_offset=1),
    }
    index = {"image_encoder": [None, None], "feature_extractor": [None, None], **settings}
    return saved(folder, parts, _class_name="StableDiffusionXLPipeline", **index)


PIPELINES = {"sd": tiny_stable_diffusion, "sdxl": tiny_sdxl}


def tiny_sd3(folder, with_t5=True, **scheduler):
    """StableDiffusion3Pipeline's files with random weights: latents 4 x 4 x 4, images 8 x 8."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder)
    sizes = len(tokenizer), 77, tokenizer.eos_token_id, CLIPTextModelWithProjection
    wide = {"hidden_size": 12, "num_hidden_layers": 3, "projection_dim": 14}
    parts = {
        "vae": autoencoder(shift_factor=0.3),
        "text_encoder": text_encoder(*sizes, num_hidden_layers=2, projection_dim=10),
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder(*sizes, **wide),
        "tokenizer_2": tokenizer,
        "transformer": SD3Transformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDE,
            caption_projection_dim=16,
            pooled_projection_dim=POOLED,
            pos_embed_max_size=8,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    }
    if with_t5:
        parts |= {"text_encoder_3": t5_encoder(), "tokenizer_3": t5_tokenizer()}
    absent = {} if with_t5 else {"text_encoder_3": NOTHING, "tokenizer_3": NOTHING}
    index = {"image_encoder": NOTHING, "feature_extractor": NOTHING, **absent}
    return saved(folder, parts, _class_name="StableDiffusion3Pipeline", **index)


def tiny_flux(folder, guidance_embeds=False, dynamic=True):
    """FluxPipeline's files with random weights: latents 4 x 8 x 8, images 16 x 16."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder)
    parts = {
        "vae": autoencoder(shift_factor=0.2, sample_size=16),
        "text_encoder": text_encoder(len(tokenizer), 77, end=tokenizer.eos_token_id),
        "tokenizer": tokenizer,
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDE,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=dynamic, base_image_seq_len=4, max_image_seq_len=64
        ),
    }
    index = {"image_encoder": NOTHING, "feature_extractor": NOTHING}
    return saved(folder, parts, _class_name="FluxPipeline", **index)


FLOWS = {"sd3": tiny_sd3, "flux": tiny_flux}


def t5_encoder():
    config = {"d_model": WIDE, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=40, feed_forward_proj="gated-gelu", **config))


def t5_tokenizer():
    """A token for each letter, as in a SentencePiece vocabulary without merges."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512)


def autoencoder(**changes):
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **{"sample_size": 8, **changes},
    )


def schedule(**changes):
    return DDIMScheduler(
        num_train_timesteps=100,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        **changes,
    )


def saved(folder, parts, **index):
    """Writes the parts one by one: the pipeline itself cannot be made without a warning."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    classes = {
        name: [type(p).__module__.partition(".")[0], type(p).__name__] for name, p in parts.items()
    }
    (folder / "model_index.json").write_text(json.dumps({**classes, **index}))
    return folder


def clip_tokenizer(folder):
    """CLIP's byte-level tokenizer without merges: a token for each letter."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)
    vocabulary.unlink()
    merges.unlink()
    return tokenizer
