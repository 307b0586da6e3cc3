"""A sentiment encoder that is trained here on SST-2, then halved and recovered.

    python benchmarks/sst2.py

takes three quarters of an hour on one core. The encoder has 4 layers, 128 channels, 8 heads and 512 feed-forward units,
and words of its own: those that occur in two phrases of the training set. It is kept in build/sst2 with its data, so
that only the first run trains it.
"""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import onnxprune
from onnxprune.criteria import CRITERIA
from reference import file
from results import publish, table
from zoo.trained import LONGEST, PADDING, UNKNOWN, Encoder

SPLITS = {"train": "train.tsv.gz", "dev": "dev.tsv", "test": "test.tsv"}
CACHE = Path(__file__).parents[1] / "build" / "sst2"
EPOCHS, BATCH, RATE, FORGOTTEN = 3, 64, 7e-4, 0.1
RECOVERED = ("spectral", "variance")
SHORTEST_LEARNT, LONGEST_LEARNT = 5, 32
RECOVERY = onnxprune.Training(epochs=2, batch=128, rate=5e-4, label_weight=0.3, temperature=2.0)


def rows(name: str) -> tuple[list[list[str]], np.ndarray]:
    """Words and labels of a file of the reference data."""
    path = file(f"sst2_{name}")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = [line.split("\t") for line in text.decode().splitlines()[1:]]
    return [sentence.split() for sentence, _ in found], np.array([int(label) for _, label in found])


def padded(sentences: list[list[str]], vocabulary: dict[str, int], length: int = LONGEST) -> np.ndarray:
    """(sentences, length) int64, cut or filled up with the padding."""
    out = np.full((len(sentences), length), PADDING)
    for row, sentence in zip(out, sentences, strict=True):
        found = [vocabulary.get(word, UNKNOWN) for word in sentence[:length]]
        row[: len(found)] = found
    return out


def words(phrases: list[list[str]]) -> dict[str, int]:
    """A number for each word that occurs in two phrases."""
    counts = Counter(word for phrase in phrases for word in phrase)
    return {word: i + 2 for i, word in enumerate(sorted(w for w, n in counts.items() if n > 1))}


def train(phrases: np.ndarray, labels: np.ndarray, size: int, dev: tuple[np.ndarray, np.ndarray]) -> Encoder:
    """Trains an encoder; batches hold phrases of about the same length."""
    torch.manual_seed(0)
    net = Encoder(size)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = EPOCHS * -(-len(phrases) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    data, truth, lengths = torch.from_numpy(phrases), torch.from_numpy(labels), (phrases != PADDING).sum(1)
    for epoch in range(EPOCHS):
        net.train()
        order = np.argsort(lengths + np.random.default_rng(epoch).random(len(lengths)))
        batches = np.split(order, range(BATCH, len(order), BATCH))
        for i in np.random.default_rng(epoch).permutation(len(batches)):
            batch = batches[i]
            taken = data[batch, : lengths[batch].max()]
            forgotten = (torch.rand(taken.shape) < FORGOTTEN) & (taken != PADDING)
            loss = functional.cross_entropy(net(taken.masked_fill(forgotten, UNKNOWN)), truth[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.inference_mode():
            right = (net(torch.from_numpy(dev[0])).argmax(1).numpy() == dev[1]).mean()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, dev {100 * right:.2f} %", flush=True)
    return net


def prepared() -> tuple[Path, dict[str, np.ndarray]]:
    """The file of the trained encoder, and arrays of all sentences and labels; trains it the first time."""
    model, arrays = CACHE / "encoder.onnx", CACHE / "sentences.npz"
    if not (model.is_file() and arrays.is_file()):
        CACHE.mkdir(parents=True, exist_ok=True)
        texts = {name: rows(end) for name, end in SPLITS.items()}
        vocabulary = words(texts["train"][0])
        found = {name: padded(sentences, vocabulary) for name, (sentences, _) in texts.items()}
        labels = {f"{name}_labels": truth for name, (_, truth) in texts.items()}
        net = train(found["train"], labels["train_labels"], len(vocabulary) + 2, (found["dev"], labels["dev_labels"]))
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=LONGEST)}
        exported = torch.onnx.export(
            net, (torch.from_numpy(found["dev"][:2, :40]),), dynamo=True, dynamic_shapes={"words": sizes},
            input_names=["words"], output_names=["logits"],
        )  # fmt: skip
        exported.save(model)
        np.savez(arrays, **found, **labels)
    with np.load(arrays) as stored:
        return model, {name: stored[name] for name in stored.files}


def unpadded(phrases: np.ndarray, batches: int, size: int = 32) -> list[dict[str, np.ndarray]]:
    """Batches of phrases of one length each, for calibration: padding is no word to rank units by."""
    lengths, generator, out = (phrases != PADDING).sum(1), np.random.default_rng(0), []
    while len(out) < batches:
        length = lengths[generator.integers(len(phrases))]
        same = np.flatnonzero(lengths == length)
        if length >= SHORTEST_LEARNT and len(same) >= size:
            out.append({"words": phrases[generator.choice(same, size, replace=False)][:, :length]})
    return out


def main() -> None:
    """Prunes by every criterion, recovers from some, and writes the table."""
    file, data = prepared()
    original, lengths = onnxprune.load(file), (data["train"] != PADDING).sum(1)
    calibration = unpadded(data["train"], 32)
    learnt = (lengths >= SHORTEST_LEARNT) & (lengths <= LONGEST_LEARNT)
    training_data = {"words": data["train"][learnt, :LONGEST_LEARNT], "labels": data["train_labels"][learnt]}

    def measured(graph: onnxprune.Graph) -> list[str]:
        return [
            f"{100 * onnxprune.evaluate(graph, {'words': data[name], 'labels': data[f'{name}_labels']})[0]:.2f} %"
            for name in ("dev", "test")
        ]

    stages = ("pruned", "refit", "recovered")
    out = [["criterion", *(f"{stage}, {name}" for stage in stages for name in ("dev", "test"))]]
    for criterion in CRITERIA:
        pruned = onnxprune.prune(
            original,
            onnxprune.Budget("units", 0.5),
            calibration,
            ranking=onnxprune.Ranking(criterion),
            method=onnxprune.Method(refit=True, latency=False),
        )
        cells = [*measured(onnxprune.remove(original, pruned.plan)), *measured(pruned.graph), "", ""]
        if criterion in RECOVERED:
            final = onnxprune.recover(pruned.graph, training_data, teacher=original, training=RECOVERY)
            cells[-2:] = measured(final)
        out.append([criterion, *cells])
        print(*out[-1], flush=True)
    before, after = pruned.report.before.parameters, pruned.report.after.parameters
    dev, test = measured(original)
    words_known = int(data["train"].max()) - UNKNOWN
    publish(
        "sst2.py",
        "## Half of an encoder that was trained on SST-2",
        f"4 layers, 128 channels, 8 heads, 512 feed-forward units, {words_known:,} words; trained from nothing in "
        f"{EPOCHS} epochs: {dev} of the 872 dev sentences, {test} of the 1,821 test sentences. `prune --units 0.5 "
        "--refit`, 5 rounds, 1,024 calibration phrases without padding: 4 of 8 heads and 256 of 512 units stay in "
        f"every layer, {before:,} parameters become {after:,} (the embedding stays whole). Recovery: "
        f"{RECOVERY.epochs} epochs on the {learnt.sum():,} training phrases of {SHORTEST_LEARNT} to {LONGEST_LEARNT} "
        "words, distillation 0.7 and labels 0.3. One sentence is 0.11 points of dev and 0.05 of test.",
        table(out),
    )


if __name__ == "__main__":
    main()
