"""Draw the pictures of this folder again, from recorded runs: python img/draw.py [FOLDER]"""
import sys
from pathlib import Path

from mae_helpers import find_run, load_images, plots
from mae_helpers.pretrain import load_mae, reconstruction_figure
from mae_helpers.recipes import pretrain_config
from mae_helpers.runs import recorded_root

RECIPE = "mnist-quick"


def draw(folder: Path) -> None:
    run = find_run(pretrain_config(RECIPE), recorded_root())
    figure = reconstruction_figure(load_mae(run), load_images("mnist", "val"), run.config, "")
    (folder / "reconstruction.png").write_bytes(plots.png(figure, dpi=120))


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
