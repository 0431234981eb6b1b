"""`python -m export`: from checkpoints to a model repository.

python -m export all --runs runs --data ../shared/data/faces    every member that is trained; again to go on
python -m export list                                           what is there
python -m export verify                                         check what is there
python -m export profile --figure family.png                    latency on this machine

One member, step by step:

python -m export onnx runs/d0/best.pt --member d0            the graph, with NMS inside
python -m export quantize d0 --data ../shared/data/faces     its INT8 form, if that is worth it
python -m export accuracy d0 --data ../shared/data/faces     AP into the manifest
python -m export card d0                                     the model card
python -m export tensorrt d0                                 its plan for the GPU here
python -m export nms d0 --data ../shared/data/faces          whether NMS in GPU graphs iterates often enough
"""

from __future__ import annotations

import sys

import typer

from export.commands.check import list_members, verify
from export.commands.family import export_all
from export.commands.nms import nms
from export.commands.profile import profile
from export.commands.single import accuracy, card, onnx, quantize
from export.commands.tensorrt import tensorrt

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False,
                  rich_markup_mode=None)  # fmt: skip
app.command(name="all")(export_all)
app.command(name="list")(list_members)
app.command()(verify)
app.command()(profile)
app.command()(onnx)
app.command()(quantize)
app.command()(accuracy)
app.command()(card)
app.command()(nms)
app.command()(tensorrt)

if __name__ == "__main__":
    sys.exit(app())
