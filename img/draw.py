"""Draw the pictures of this folder again, from recorded runs: python img/draw.py [FOLDER]"""
import sys
from pathlib import Path

import torch

from mae_helpers import find_run, load_images, plots
from mae_helpers.pretrain import fixed_examples, fixed_mask, load_mae, reconstruction_figure
from mae_helpers.recipes import pretrain_config
from mae_helpers.runs import recorded_root


def recorded(recipe: str):
    run = find_run(pretrain_config(recipe), recorded_root())
    return run, load_mae(run)


def reconstruction() :
    """Eight validation digits and what the longer recipe's model answers."""
    run, model = recorded("mnist-full")
    return reconstruction_figure(model, load_images("mnist", "val"), run.config, "")


def diagram() :
    """One digit on its way through the quick recipe's model."""
    _, model = recorded("mnist-quick")
    examples = fixed_examples(load_images("mnist", "val"))
    one, mask = examples.subset(torch.tensor([2])), fixed_mask(model, 8, 0.75)[2:3]
    answer = examples.denormalize(model.reconstruct(one.normalize(one.images), mask=mask, paste=False))
    sizes = {"patches": "1 image:\n4 of 16 patches visible", "visible": "visible\n4 × 49",
             "encoder": "4 blocks\nof width 96", "latent": "encoded\n4 × 96", "restored": "with mask tokens\n16 × 64",
             "decoder": "1 block\nof width 64", "answer": "pixels for\nall: 16 × 49"}
    return plots.mae_diagram(one.images[0] / 255, mask[0], answer[0], sizes)


def throughput():
    """Images a second of everybody, from the benchmarks' file of results; None before there is one."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from benchmarks import results, show
    return show.figure(results.load())


PICTURES = {"reconstruction": reconstruction, "mae": diagram, "throughput": throughput}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, draw in PICTURES.items():
        figure = draw()
        if figure is not None:
            (folder / f"{name}.png").write_bytes(plots.png(figure, dpi=120))
