"""Lines drawn a second by one process: our renderer beside `trdg`, in turns in one run.

    pip install --no-deps trdg arabic-reshaper python-bidi wikipedia && pip install beautifulsoup4 requests
    python scripts/benchmarks/render_lines.py [TEXTS] [--lines 200] [--pairs 7] [--workers 1 2]

TEXTS is a UTF-8 file of sentences, the package's own by default. Both draw lines of about 40 characters, 40 px high, with the
fonts that each brings or finds: ours with its looks (ink, paper, warp, noise, copies, JPEG), trdg with skew, blur and its
background noise. Printed: the median over the pairs of lines/s of each, and of their ratio within a pair; then how many lines
that many DataLoader workers hand over together.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont
from torch.utils.data import DataLoader, Subset

from hf_vlm.data.lines.line_texts import SHIPPED_SENTENCES
from hf_vlm.data.lines.ocr_lines import LineRenderer


def trdg_lines(texts: list[str], count: int) -> float:
    """Seconds that trdg takes for `count` lines."""
    # trdg 1.8.0 asks for two names that Pillow has given up.
    if not hasattr(ImageFont.FreeTypeFont, "getsize"):
        ImageFont.FreeTypeFont.getsize = lambda font, text, *args, **kwargs: font.getbbox(text)[2:]
    if not hasattr(Image, "ANTIALIAS"):
        Image.ANTIALIAS = Image.LANCZOS
    from trdg.generators import GeneratorFromStrings

    lines = GeneratorFromStrings(
        texts, count=count, size=40, skewing_angle=2, random_skew=True, blur=1, random_blur=True, background_type=0
    )
    start = time.perf_counter()
    for _ in lines:
        pass
    return time.perf_counter() - start


def our_lines(renderer: LineRenderer, first: int, count: int) -> float:
    """Seconds that our renderer takes for lines `first` and on."""
    start = time.perf_counter()
    for index in range(first, first + count):
        renderer[index]
    return time.perf_counter() - start


def worker_lines(renderer: LineRenderer, first: int, count: int, workers: int) -> float:
    """Seconds that `count` lines from `first` on take through a DataLoader, from the first batch of 20 on."""
    loader = DataLoader(
        Subset(renderer, range(first, first + count + 20 * workers)),
        batch_size=20,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context="fork",  # with the glyphs that are drawn already
    )
    batches = iter(loader)
    for _ in range(workers):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="?", default=SHIPPED_SENTENCES)
    parser.add_argument("--lines", type=int, default=200, help="lines a measurement, default 200")
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each, default 7")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="numbers of DataLoader workers, such as 1 2")
    arguments = parser.parse_args()

    renderer = LineRenderer(arguments.texts)
    texts = renderer.texts
    rng = np.random.default_rng(0)
    fragments = [texts.fragment(42, rng) or "a" for _ in range(arguments.lines)]
    our_lines(renderer, 0, 2000), trdg_lines(fragments, 50)  # caches of glyphs and fonts, as in a long run
    ours, peer = [], []
    for pair in range(arguments.pairs):
        ours.append(arguments.lines / our_lines(renderer, 2000 + pair * arguments.lines, arguments.lines))
        peer.append(arguments.lines / trdg_lines(fragments, arguments.lines))
    ratios = [one / other for one, other in zip(ours, peer, strict=True)]
    print(f"hf-vlm  {statistics.median(ours):7.0f} lines/s, {len(renderer.faces)} faces")
    print(f"trdg    {statistics.median(peer):7.0f} lines/s")
    print(f"ratio   {statistics.median(ratios):7.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs)")
    for workers in arguments.workers:
        seconds = worker_lines(renderer, 10_000, 5 * arguments.lines * workers, workers)
        print(
            f"{workers} worker{'s' if workers > 1 else ' '} {5 * arguments.lines * workers / seconds:6.0f} lines/s together"
        )


if __name__ == "__main__":
    main()
