"""The commands of `hf-vlm`, by what people want: the order of its help."""

from hf_vlm.cli.command import Command
from hf_vlm.cli.commands import (
    assemble,
    audit,
    card,
    chat,
    completion,
    convert,
    demo,
    estimate,
    evaluate,
    explain,
    export_code,
    export_onnx,
    export_transformers,
    extend_alphabet,
    make_data,
    merge,
    push,
    read,
    show,
    tokenize,
    train,
)

GROUPS: dict[str, tuple[Command, ...]] = {
    "Make a model": (assemble.COMMAND, extend_alphabet.COMMAND),
    "Look at data, and make it": (audit.COMMAND, convert.COMMAND, make_data.COMMAND),
    "Train and measure": (estimate.COMMAND, train.COMMAND, evaluate.COMMAND, show.COMMAND),
    "Use a model": (read.COMMAND, chat.COMMAND, tokenize.COMMAND, explain.COMMAND, demo.COMMAND),
    "Share a model": (
        merge.COMMAND,
        card.COMMAND,
        push.COMMAND,
        export_transformers.COMMAND,
        export_code.COMMAND,
        export_onnx.COMMAND,
    ),
    "In your shell": (completion.COMMAND,),
}
COMMANDS: dict[str, Command] = {command.name: command for commands in GROUPS.values() for command in commands}
