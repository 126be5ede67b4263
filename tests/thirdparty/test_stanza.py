"""stanza: the tagger (characters, highway LSTMs, all heads), the tokenizer, the lemmatizer."""

import torch
from comparison import compare
from stanza.models.common.seq2seq_model import Seq2SeqModel
from stanza.models.pos.model import Tagger
from stanza.models.tokenization.model import Tokenizer
from torch import Tensor, nn


def lively(model: nn.Module) -> nn.Module:
    """Random numbers where the package starts at zero: what is zero shows no difference."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.abs().max():
            nn.init.uniform_(parameter.data, -0.3, 0.3)
    return model.eval()


def test_the_tagger() -> None:
    """Packed words, each of packed characters, through highway LSTMs with learnt initial states."""
    sizes = {
        "word_emb_dim": 75,
        "tag_emb_dim": 50,
        "char_emb_dim": 100,
        "char_hidden_dim": 200,
        "transformed_dim": 125,
        "hidden_dim": 200,
        "deep_biaff_hidden_dim": 100,
        "composite_deep_biaff_hidden_dim": 50,
        "num_layers": 2,
        "char_num_layers": 1,
    }
    rates = {"dropout": 0.0, "word_dropout": 0.0, "rec_dropout": 0, "char_rec_dropout": 0}
    vocabulary = {
        "word": range(500),
        "char": range(60),
        "upos": range(18),
        "xpos": range(40),
        "feats": range(70),
    }
    torch.manual_seed(0)
    args = {**sizes, **rates, "char": True, "pretrain": False, "extra_tag_columns": ""}
    model = lively(Tagger(args, vocabulary))
    sentences = [23, 17, 17, 9, 4, 1]
    words = sum(sentences)
    letters = torch.randint(1, 12, (words,)).sort(descending=True).values
    longest = max(sentences)
    chars = torch.randint(1, 60, (words, int(letters[0])))
    inside = torch.arange(longest) < torch.tensor(sentences)[:, None]
    word = torch.randint(2, 500, (len(sentences), longest)) * inside
    tags = [torch.randint(1, n, word.shape) * inside for n in (18, 40, 70)]

    def run(tagger: Tagger) -> dict[str, Tensor]:
        loss, predictions = tagger(
            word,
            word == 0,
            chars,
            chars == 0,
            tags,
            None,
            torch.randperm(words, generator=torch.Generator().manual_seed(3)).tolist(),
            sentences,
            letters.tolist(),
            None,
        )
        return {"loss": loss.reshape(1)} | {f"tags {n}": one for n, one in enumerate(predictions)}

    compare("stanza", "tagger: characters, 2 highway BiLSTMs", model, run)


def test_the_tokenizer() -> None:
    args = {
        "feat_dim": 5,
        "rnn_layers": 1,
        "conv_res": None,
        "use_mwt": True,
        "hierarchical": True,
        "hier_invtemp": 0.5,
        "tok_noise": 0.0,
    }
    torch.manual_seed(0)
    model = lively(Tokenizer(args, 200, 32, 64, 0.0, 0.0))
    lengths = [300, 240, 120, 60]
    x, feats = torch.randint(1, 200, (4, 300)), torch.rand(4, 300, 5)
    compare(
        "stanza",
        "tokenizer: hierarchical BiLSTM over characters",
        model,
        lambda tokenizer: {"scores": tokenizer(x, feats, lengths)},
    )


def test_the_lemmatizer() -> None:
    """A packed BiLSTM encoder; a decoder of one cell with attention, stepped through the targets."""
    args = {
        "vocab_size": 80,
        "emb_dim": 50,
        "hidden_dim": 100,
        "num_layers": 1,
        "emb_dropout": 0.0,
        "dropout": 0.0,
        "max_dec_len": 20,
        "top": 80,
        "attn_type": "soft",
    }
    torch.manual_seed(0)
    model = lively(Seq2SeqModel(args))
    lengths = torch.tensor([14, 11, 9, 6, 3])
    source = torch.randint(4, 80, (5, 14))
    mask = torch.arange(14) >= lengths[:, None]
    target = torch.randint(4, 80, (5, 12))

    def run(lemmatizer: Seq2SeqModel) -> dict[str, Tensor]:
        scores, *_ = lemmatizer(source.masked_fill(mask, 0), mask, target)
        return {"scores": scores}

    compare("stanza", "lemmatizer: BiLSTM encoder, attention over an LSTM decoder", model, run)
