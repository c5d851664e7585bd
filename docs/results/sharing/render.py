"""Draw a model card as wide as a desktop and as a phone show it: card_desktop.png and card_phone.png.

Usage: render.py README.md FOLDER
Needs markdown-it-py, weasyprint, pypdfium2 and Pillow. The style is close to that of the Hub, where wide tables
scroll.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pypdfium2
import weasyprint
from markdown_it import MarkdownIt
from PIL import Image


WIDTHS = {"desktop": 1200, "phone": 390}
STYLE = """
@page {{ size: {width}px {height}px; margin: 0 }}
body {{ font: 16px/1.6 "DejaVu Sans", sans-serif; margin: 16px; max-width: 860px; color: #1f2937 }}
img {{ max-width: 100% }}
table {{ border-collapse: collapse; display: table; font-size: 14px }}
th, td {{ border: 1px solid #d1d5db; padding: 4px 8px }}
pre {{ background: #f3f4f6; padding: 12px; font-size: 13px; overflow: hidden }}
code {{ font-family: "DejaVu Sans Mono", monospace; font-size: 13px }}
"""


def main() -> None:
    """Draw it at both widths."""
    card, folder = Path(sys.argv[1]), Path(sys.argv[2])
    text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    for name, width in WIDTHS.items():
        page = weasyprint.HTML(string=html, base_url=str(card.parent.resolve()))
        style = weasyprint.CSS(string=STYLE.format(width=width, height=9000))
        pdf = pypdfium2.PdfDocument(page.write_pdf(stylesheets=[style]))
        image = pdf[0].render(scale=96 / 72).to_pil().convert("L").point(lambda value: 0 if value > 250 else 255)
        bottom = image.getbbox()[3]
        drawn = pdf[0].render(scale=96 / 72).to_pil().crop((0, 0, width, bottom + 16))
        drawn.quantize(256, Image.Quantize.FASTOCTREE).save(folder / f"card_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
