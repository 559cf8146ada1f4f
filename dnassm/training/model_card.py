"""README.md of a run folder: what the model is, what it saw, how to use it."""

from __future__ import annotations

from pathlib import Path

from dnassm.artifact import staged_file
from dnassm.config import RunConfig
from dnassm.data.store import GenomeStore
from dnassm.model import DNAModel
from dnassm.training.checkpoint import Progress

_CARD = """---
library_name: dnassm
tags: [dna, genomics, state-space-model]
---
# {name}

{parameters:,} parameters, blocks `{pattern}`, width {width}, trained to predict the
{objective} token.

| | |
|---|---|
| genome | {contigs} contigs, {bases:,} bases, digest `{digest}` |
| tokenizer | {tokenizer} |
| rows | {length:,} tokens, {sampler}, reverse complements with probability {rc} |
| seen | {tokens:,} tokens in {steps:,} steps |

```python
import dnassm
model = dnassm.DNAModel.from_pretrained("{name}")
```

`run.json` holds the command, the versions and the inputs; `metrics.csv` the loss;
`evaluation.json`, where there is one, the bits per base on held-out sequence beside Markov models.
"""


def write_model_card(
    folder: Path, model: DNAModel, config: RunConfig, genome: GenomeStore, progress: Progress
) -> None:
    """Write ``folder/README.md``."""
    text = _CARD.format(
        name=folder.name,
        parameters=model.parameter_count(),
        pattern=config.model.pattern,
        width=config.model.d_model,
        objective=config.objective.name,
        contigs=len(genome.contigs),
        bases=sum(genome.lengths.values()),
        digest=genome.digest[:16],
        tokenizer=config.data.tokenizer.name,
        length=config.data.length,
        sampler=config.data.sampler.name if config.data.packing is None else "packed",
        rc=config.data.rc_probability,
        tokens=progress.tokens,
        steps=progress.step,
    )
    with staged_file(folder / "README.md") as staging:
        staging.write_text(text, encoding="utf-8")
