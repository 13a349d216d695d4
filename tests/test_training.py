"""The embedded models' training: exact resume, the captioning shortcut, tokenizers, gradients."""

import pytest
import torch
from torch import nn

from dfl_utils.mini import architectures, autoencoder, captioning, grounding, judges
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import captions, scenes


def regression(folder, until=None):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    carried = {"seen": torch.zeros(1)}

    def loss(step):
        carried["seen"] += 1
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (model(x) - x[:, :3]).square().mean(), {}

    training = Training(folder, model, loss, Schedule(60, lr=1e-2, warmup=5), carried).run(until)
    return model, training, carried


def test_resume_gives_the_same_weights_as_no_kill_and_a_finished_training_does_no_step(tmp_path):
    whole, _, seen = regression(tmp_path / "whole")
    regression(tmp_path / "cut", until=23)
    (tmp_path / "cut" / "state.partial").write_bytes(b"cut off")  # never replaces the old one
    for _ in range(2):
        resumed, training, seen_again = regression(tmp_path / "cut")
        assert training.step == 60
        assert seen == seen_again == {"seen": torch.tensor([60.0])}  # as it was checkpointed
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)


def test_schedule_by_hand():
    schedule = Schedule(steps=110, lr=1.0, warmup=10)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(10) == pytest.approx(1.0)
    assert schedule.rate(60) == pytest.approx(0.01 + 0.99 * 0.5)


@pytest.fixture(scope="module")
def captioner():
    torch.manual_seed(0)
    return architectures.blip("base"), architectures.bert_tokenizer()


def test_restricted_head_equals_the_models_own_loss(captioner):
    model, tokenizer = captioner
    head = captioning.RestrictedHead(model, tokenizer)
    batch = [scenes.sample(f"test/{k}") for k in range(3)]
    images = autoencoder.pixels([scenes.render(scene) for scene in batch])
    texts = [captions.web(scene, "test") for scene in batch]
    tokens = tokenizer([f"{architectures.PROMPT} {text}" for text in texts], padding=True, return_tensors="pt")
    ids = tokens.input_ids.clone()
    ids[:, 0] = tokenizer.bos_token_id
    labels = ids.masked_fill(tokens.attention_mask == 0, -100)
    labels[:, :4] = -100  # [DEC] a picture of
    full = model(pixel_values=images, input_ids=ids, attention_mask=tokens.attention_mask, labels=labels).loss
    torch.testing.assert_close(head.loss(images, texts), full, atol=1e-4, rtol=0)


def test_unused_tokens_are_zero_and_unlikely(captioner):
    model, tokenizer = captioner
    used = set(architectures.used_tokens(tokenizer).tolist())
    word = tokenizer.convert_tokens_to_ids("parliament")
    assert word not in used
    assert model.text_decoder.bert.embeddings.word_embeddings.weight[word].abs().sum() == 0
    assert model.text_decoder.cls.predictions.decoder.bias[word] == architectures.UNUSED_LOGIT


def test_vocabularies_are_the_real_ones():
    clip, bert = architectures.clip_tokenizer(), architectures.bert_tokenizer()
    assert (len(clip), len(bert)) == (49408, 30524)
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert bert("a photo of a cat").input_ids == [101, 1037, 6302, 1997, 1037, 4937, 102]
    assert bert.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]


def test_patch_labels_by_hand():
    scene = scenes.Scene((scenes.Thing("dog", "red", "small", 5, 0),), "gray", None)
    labels = grounding.patch_labels(scene).reshape(3, 8, 8)
    assert (labels[0] == 1).sum() == 9
    assert labels[0, 2, 7] == 1 and labels[0, 3, 7] == 0
    assert set(labels[2].ravel()) == {tuple(scenes.GROUNDS).index("gray")}


def test_probe_labels_by_hand():
    things = (scenes.Thing("cat", "blue", "small", 0, 0), scenes.Thing("ghost", "blue", "small", 4, 0))
    labels = judges.probe_labels(scenes.Scene(things, "white", "beside"))
    assert labels.shape == (59,) and labels.sum() == 4  # cat, ghost, blue, two
    assert labels[scenes.CATEGORIES.index("ghost")] == 1 and labels[-2] == 1


def test_dino_never_sees_a_label_and_moves_its_teacher():
    student = judges.Student(architectures.dino())
    views = torch.rand(2, 3, 64, 64)
    before = student.teacher[0].embeddings.cls_token.clone()
    with torch.no_grad():
        student.backbone.embeddings.cls_token += 1
    targets = student.teach(views, momentum=0.9)
    assert not targets.requires_grad
    torch.testing.assert_close(student.teacher[0].embeddings.cls_token, before + 0.1)
