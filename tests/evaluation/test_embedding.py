"""Embeddings: neither padding, batch nor chunk change them; files hold them with coordinates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dnassm.config import ModelConfig
from dnassm.data.alphabet import encode_ascii, reverse_complement
from dnassm.data.tokenizer import TOKENIZERS
from dnassm.embedding import Embedder, EmbedOptions, embed
from dnassm.embedding.embedder import batches
from dnassm.embedding.inputs import from_fasta, parse_windows
from dnassm.errors import ArtifactError, ConfigError, FormatError, ShapeError
from dnassm.model import DNAModel
from dnassm.pooling import POOLS, RunningPool, pool
from dnassm.runs import load_run

TOL = {"rtol": 1e-4, "atol": 1e-5}  # float32; a chunked scan adds in another order


def make_model(*, bidirectional=False, pattern="ms"):
    torch.manual_seed(3)
    model = DNAModel(ModelConfig(d_model=16, pattern=pattern, bidirectional=bidirectional))
    with torch.no_grad():  # fresh weights give nearly equal vectors: spread them
        model.embedding.weight.mul_(50)
    return model.eval()


def letters(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


SEQUENCES = [letters(n, seed=n) for n in (37, 5, 64, 1, 50, 64)]
CODES = [encode_ascii(s.encode()) for s in SEQUENCES]
LENGTHS = [len(s) for s in SEQUENCES]


def embedder(model, **options):
    chunk = options.pop("chunk_tokens", 32_768)
    tokenizer = TOKENIZERS["single"]()
    return Embedder(model, tokenizer, EmbedOptions(**options), chunk_tokens=chunk)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_model().save_pretrained(folder)
    TOKENIZERS["single"]().save(folder / "tokenizer.json")
    return load_run(folder)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_a_sequence_embeds_the_same_alone_and_in_a_padded_batch(name, bidirectional):
    model = make_model(bidirectional=bidirectional)
    together = embedder(model, pool=name).pooled(LENGTHS, CODES.__getitem__)
    for i, codes in enumerate(CODES):
        alone = embedder(model, pool=name).pooled([len(codes)], [codes].__getitem__)
        np.testing.assert_allclose(together[i], alone[0], **TOL)


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_pooled_vectors_are_what_numpy_makes_of_the_hidden_states(layer):
    model = make_model()
    got = embedder(model, pool="mean+last+max", layer=layer).pooled(LENGTHS, CODES.__getitem__)
    for i, sequence in enumerate(SEQUENCES):
        tokens = torch.from_numpy(TOKENIZERS["single"]().encode(sequence))[None]
        hidden = model.hidden(tokens, layer=layer)[0][0].detach().numpy()
        want = np.concatenate([hidden.mean(0), hidden[-1], hidden.max(0)])
        np.testing.assert_allclose(got[i], want, **TOL)


@pytest.mark.parametrize("strand", ["plus", "both"])
def test_feeding_chunks_changes_nothing(monkeypatch, strand):
    monkeypatch.setattr("dnassm.embedding.embedder._SHORTEST_CHUNK", 8)
    model = make_model()
    for name in ("mean+last+max",):
        whole = embedder(model, pool=name, strand=strand).pooled(LENGTHS, CODES.__getitem__)
        cut = embedder(model, pool=name, strand=strand, chunk_tokens=11)
        np.testing.assert_allclose(cut.pooled(LENGTHS, CODES.__getitem__), whole, **TOL)
    same = [CODES[2], CODES[5]]
    whole = embedder(model, pool="none", strand=strand).per_base([64, 64], same.__getitem__)
    cut = embedder(model, pool="none", strand=strand, chunk_tokens=11)
    np.testing.assert_allclose(cut.per_base([64, 64], same.__getitem__), whole, **TOL)


def test_no_forward_pass_is_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr("dnassm.embedding.embedder._SHORTEST_CHUNK", 8)
    model = make_model()
    seen = []
    original = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda t, *a, **k: (seen.append(t.numel()), original(t, *a, **k))[1]
    )
    codes = encode_ascii(letters(1000).encode())
    embedder(model, chunk_tokens=100).pooled([1000], [codes].__getitem__)
    assert max(seen) <= 100
    assert sum(seen) == 1000


def test_both_strands_give_one_embedding_to_a_sequence_and_its_reverse_complement():
    complement = str.maketrans("ACGT", "TGCA")
    reverse = [s[::-1].translate(complement) for s in SEQUENCES]
    codes = [encode_ascii(s.encode()) for s in reverse]
    model = make_model()
    for strand, equal in (("both", True), ("plus", False)):
        there = embedder(model, strand=strand).pooled(LENGTHS, CODES.__getitem__)
        back = embedder(model, strand=strand).pooled(LENGTHS, codes.__getitem__)
        assert np.allclose(there, back, **TOL) is equal
    base = embedder(model, pool="none", strand="both")
    there = base.per_base([64], [CODES[2]].__getitem__)
    back = base.per_base([64], [codes[2]].__getitem__)
    np.testing.assert_allclose(there, back[:, ::-1], **TOL)


def test_padding_does_not_count_whatever_it_holds():
    hidden = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * n + [False] * (7 - n) for n in (7, 3, 1)])
    clean = pool(hidden, real, POOLS)
    hidden[~real] = float("nan")
    torch.testing.assert_close(pool(hidden, real, POOLS), clean)


def test_a_row_that_ended_keeps_its_vector_while_longer_rows_go_on():
    hidden = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * n + [False] * (7 - n) for n in (7, 3, 1)])
    running = RunningPool(POOLS)
    for start in range(0, 7, 2):
        running.add(hidden[:, start : start + 2], real[:, start : start + 2])
    torch.testing.assert_close(running.result(), pool(hidden, real, POOLS))


def test_batches_hold_every_sequence_once_and_waste_less_than_half():
    lengths = np.random.default_rng(0).integers(1, 2000, 300).tolist()
    for mixed in (True, False):
        made = list(batches(lengths, 16, mixed=mixed))
        assert sorted(i for batch in made for i in batch) == list(range(300))
        for batch in made:
            sizes = [lengths[i] for i in batch]
            assert len(batch) <= 16
            assert min(sizes) >= max(sizes) * (0.5 if mixed else 1)


def test_the_model_is_left_in_the_mode_it_was_in():
    model = make_model().train()
    embedder(model).pooled(LENGTHS, CODES.__getitem__)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_embed_takes_letters_by_name(run):
    made = embed(run, {"one": "ACGTN", "two": "acgtr"})
    assert made.values.shape == (2, 16)
    assert made.row_names() == ["one:0-5(+)", "two:0-5(+)"]
    assert made.provenance["run"] == run.digest
    np.testing.assert_array_equal(made.values, embed(run.path, ["ACGTN", "ACGTN"]).values)


def test_rows_of_one_name_keep_names_of_their_own(run):
    rows = embed(run, ["ACGT"]).rows * 2
    from dnassm.embedding import Embeddings

    names = Embeddings(np.zeros((2, 1), np.float32), rows, {}).row_names()
    assert names == ["seq1:0-4(+)", "seq1:0-4(+)#2"]


def test_npy_has_a_bed_twin_with_coordinates_and_provenance(run, tmp_path):
    made = embed(run, {"one": "ACGTN", "two": "ACGTACGT"})
    assert made.save(tmp_path / "x.npy") == [tmp_path / "x.npy", tmp_path / "x.bed"]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), made.values)
    lines = (tmp_path / "x.bed").read_text().splitlines()
    assert json.loads(lines[0].removeprefix("# "))["run"] == run.digest
    assert lines[1].split("\t")[:3] == ["#chrom", "start", "end"]
    assert lines[3].split("\t") == ["two", "0", "8", "two", "0", "+", ".", "."]


def test_parquet_holds_vectors_coordinates_and_provenance(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    made = embed(run, {"one": "ACGTN", "two": "ACGTACGT"}, pool="max", layer=1)
    made.save(tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), made.values)
    assert table["end"].to_pylist() == [5, 8]
    assert table.schema.metadata[b"layer"] == b"1"
    assert table.schema.metadata[b"pool"] == b"max"


def test_h5ad_holds_what_scanpy_expects(run, tmp_path):
    anndata = pytest.importorskip("anndata")
    made = embed(run, {"one": "ACGTN", "two": "ACGTACGT"})
    made.save(tmp_path / "x.h5ad")
    table = anndata.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(table.X, made.values)
    assert list(table.obs_names) == ["one:0-5(+)", "two:0-8(+)"]
    assert list(table.obs.columns) == ["chrom", "start", "end", "name", "strand", "label", "split"]
    assert table.uns["dnassm"]["run"] == run.digest


def test_a_file_is_not_replaced_without_force(run, tmp_path):
    (tmp_path / "x.bed").write_text("mine")
    made = embed(run, ["ACGT"])
    with pytest.raises(ArtifactError, match=r"x\.bed exists already"):
        made.save(tmp_path / "x.npy")
    assert (tmp_path / "x.bed").read_text() == "mine"
    assert not (tmp_path / "x.npy").exists()
    made.save(tmp_path / "x.npy", force=True)


def test_one_vector_per_base_needs_equal_lengths_and_npy(run, tmp_path):
    made = embed(run, ["ACGT", "TTTT"], pool="none")
    assert made.values.shape == (2, 4, 16)
    made.save(tmp_path / "x.npy")
    with pytest.raises(ShapeError, match=r"\.npy"):
        made.save(tmp_path / "x.parquet")
    with pytest.raises(ShapeError, match="got 4 and 6 bases"):
        embed(run, ["ACGT", "TTTTTT"], pool="none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 3}, "layer 3 is out of range.*blocks 1 to 2"),
        ({"layer": -1}, "layer -1 is out of range"),
        ({"pool": "maen"}, "Did you mean 'mean'"),
        ({"strand": "minus"}, "'plus' or 'both'"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_a_wrong_option_is_named(run, options, words):
    with pytest.raises(ConfigError, match=words):
        embed(run, ["ACGT"], **options)


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ({"a": "ACGT", "b": "ACG!T"}, "sequence 'b'.*'!' at position 3"),
        (["ACGT", ""], "sequence 'seq2' is empty"),
        ([], "at least one sequence"),
    ],
)
def test_a_wrong_sequence_is_named(run, sequences, words):
    with pytest.raises(FormatError, match=words):
        embed(run, sequences)


def test_a_fasta_record_is_named_by_its_first_word(tmp_path):
    path = tmp_path / "x.fa"
    path.write_text(">one first\nACGT\nAC\n>two\nNNN\n")
    inputs = from_fasta(path)
    assert [(row.name, len(row.interval)) for row in inputs.rows] == [("one", 6), ("two", 3)]
    np.testing.assert_array_equal(inputs.fetch(0), encode_ascii(b"ACGTAC"))


@pytest.mark.parametrize("text", ["", "a:b", "0:5", "10:-1", "10:5:3"])
def test_a_wrong_window_is_refused(text):
    with pytest.raises(ConfigError, match="SIZE:STEP"):
        parse_windows(text)


# Tokens of several bases

TOKENIZERS_OF_WORDS = {
    "kmer": ("kmer", {"k": 3}),
    "overlapping": ("kmer", {"k": 3, "overlap": True}),
    "bpe": ("bpe", {"merges": ["A C", "G T", "AC GT", "T T", "A A"]}),
}


@pytest.fixture(params=TOKENIZERS_OF_WORDS)
def of_words(request):
    if request.param == "bpe":
        pytest.importorskip("tokenizers")
    name, options = TOKENIZERS_OF_WORDS[request.param]
    tokenizer = TOKENIZERS[name](**options)

    def make(*, bidirectional=False, **options):
        torch.manual_seed(3)
        config = ModelConfig(
            d_model=16, pattern="ms", bidirectional=bidirectional, vocab_size=tokenizer.vocab_size
        )
        model = DNAModel(config).eval()
        with torch.no_grad():
            model.embedding.weight.mul_(50)
        return Embedder(model, tokenizer, EmbedOptions(**options), chunk_tokens=11)

    return make


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_base_has_the_vector_of_the_token_that_holds_it(of_words, bidirectional, monkeypatch):
    monkeypatch.setattr("dnassm.embedding.embedder._SHORTEST_CHUNK", 8)
    sequences = [letters(62, seed=n) + "NA" for n in range(3)]
    codes = [encode_ascii(s.encode()) for s in sequences]
    made = of_words(pool="none", bidirectional=bidirectional)
    reported = []
    got = made.per_base([64] * 3, codes.__getitem__, report=reported.append)
    assert got.shape == (3, 64, 16)
    assert reported == sorted(reported)
    assert reported[-1] == 3 * 64
    for i, sequence in enumerate(sequences):
        tokens = made.tokenizer.encode(sequence)
        hidden = made.model.hidden(torch.from_numpy(tokens)[None])[0][0].detach().numpy()
        begins = 0
        for token, vector in zip(tokens, hidden, strict=True):
            # Overlapping words: each stands for the base that it begins with.
            size = 1 if made.tokenizer.overlap > 1 else len(made.tokenizer.vocab[token])
            for base in range(begins, begins + size):
                np.testing.assert_allclose(got[i, base], vector, **TOL)
            begins += size
        assert begins == 64


def test_words_of_both_strands_meet_at_their_base(of_words):
    codes = [encode_ascii(letters(64).encode())]
    other = [reverse_complement(codes[0])]
    both = of_words(pool="none", strand="both").per_base([64], codes.__getitem__)
    plus = of_words(pool="none")
    there, back = (plus.per_base([64], c.__getitem__) for c in (codes, other))
    np.testing.assert_allclose(both, (there + back[:, ::-1]) / 2, **TOL)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_words_are_pooled_over_tokens_whatever_the_batch(of_words, bidirectional):
    made = of_words(pool="mean", bidirectional=bidirectional)
    together = made.pooled(LENGTHS, CODES.__getitem__)
    for i, sequence in enumerate(SEQUENCES):
        tokens = torch.from_numpy(made.tokenizer.encode(sequence))[None]
        hidden = made.model.hidden(tokens)[0][0].detach().numpy()
        np.testing.assert_allclose(together[i], hidden.mean(0), **TOL)
