"""How words become a command and its options, and what is said of words that do not.

Help and a completion load this and `commands` alone. Neither must import what loads pydantic, aiohttp or asyncio.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand, TyperGroup

from flux_klein_async.text import shown

__all__ = ["LONGEST", "Command", "Group", "PromptCommand", "SearchOrCommand", "usage_error"]

_ALIKE = 0.7  # click's own 0.6 finds --json for --n
LONGEST = 80
"""Characters of a mistyped word that are repeated."""
_COUNT = "FLUX.2 [klein] makes one picture per request: `generate` takes --count, and `batch` makes one for each line"
_ACCESS = "the token comes from RUNCOMFY_API_TOKEN, where other users of this machine cannot read it"
_GUIDANCE = "FLUX.2 [klein] takes no guidance"
_SPENDING = "to bound what is spent, `batch` takes --max-spend USD"
_AT_ONCE = "how many are made at a time is --concurrency"
_AGAIN = "failed calls are repeated by themselves; `batch --retry-failed` submits failed lines again"
_LOG = "FLUX_KLEIN_DEBUG=1 in the environment prints tracebacks, and the log with every event"
_SIZE = "the sides are --width and --height"
# What users of other models and other commands look for.
_ELSEWHERE = {
    "--seed": "FLUX.2 [klein] takes no seed; for a model that does: `generate --input seed=N`, or "
    '"seed": N in a line of `batch`',
    "--negative-prompt": "FLUX.2 [klein] takes no negative prompt; say in the prompt what you want instead",
    **dict.fromkeys(("-n", "--n", "--num", "--num-images", "--count"), _COUNT),
    **dict.fromkeys(("--budget", "--max-cost", "--cost", "--spend", "--limit", "--max-usd"), _SPENDING),
    **dict.fromkeys(("--parallel", "--jobs", "-j", "--workers", "--threads", "--max-in-flight"), _AT_ONCE),
    **dict.fromkeys(("--retry", "--retries", "--max-retries"), _AGAIN),
    **dict.fromkeys(("--verbose", "-v", "--debug"), _LOG),
    "-V": "the version is --version",
    **dict.fromkeys(("--resume", "--continue"), "run the same `batch` again: it resumes by itself"),
    **dict.fromkeys(("--guidance", "--guidance-scale"), _GUIDANCE),
    "--image": "FLUX.2 [klein] takes no picture; for a model that does: `generate --input image_urls=@FILE`, or "
    '"image_urls": [{"file": "in.png"}] in a line of `batch`',
    "--lora": "FLUX.2 [klein] takes no LoRA",
    **dict.fromkeys(("--aspect-ratio", "--size"), _SIZE),
    "--prompt": 'a prompt needs no option: `flux-klein generate "a snow leopard"`',
    **dict.fromkeys(("--api-key", "--token"), _ACCESS),
    "--token-file": 'RUNCOMFY_API_TOKEN="$(cat FILE)" before the command reads the token from a file',
    "--prompt-file": "`flux-klein generate - < FILE` reads the prompt from a file",
    **dict.fromkeys(("--force", "--overwrite", "-f"), "no file is replaced; new pictures go to another --output-dir"),
}
_NAMES = {"--file", "--filename", "--name", "--names"}


def _unconverted(command: Any, ctx: Any) -> None:
    """Leave the words as they are: to convert them, typer would load pydantic."""
    for parameter in command.get_params(ctx):
        parameter.process_value = lambda _, value: value


class Command(TyperCommand):
    """A command with its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a completion needs only the words."""
        if ctx.resilient_parsing:
            _unconverted(self, ctx)
        return list(super().parse_args(ctx, args))


class Group(TyperGroup):
    """A group of commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a completion needs only the words, and options of its own come before the name of a command."""
        if ctx.resilient_parsing or (args and args[0] in self.commands):
            _unconverted(self, ctx)
        return list(super().parse_args(ctx, args))


class PromptCommand(Command):
    """Accepts a prompt such as "-5 degrees", and still refuses a mistyped option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; text that starts with a dash is a prompt if it has several words or follows `--`."""
        args = list(args)
        if "--" not in args:
            takes_value = {
                name for option in self.params if not getattr(option, "is_flag", True) for name in option.opts
            }
            for number, word in enumerate(args):
                after = args[number - 1] if number else ""
                if word.startswith("-") and len(word.partition("=")[0].split()) > 1 and after not in takes_value:
                    args = [*args[:number], *args[number + 1 :], "--", word]
                    break
        ctx.allow_extra_args = True
        rest = list(super().parse_args(ctx, args))
        if ctx.args:
            more = "; a prompt that starts with a dash goes after --" if ctx.args[0].startswith("-") else ""
            ctx.fail(f"Got more than one prompt: put quotes around a prompt of several words{more}")
        return rest


class SearchOrCommand(Group):
    """Takes a search with its options, or one of its commands as the first word."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters; the usage of a command below has no SEARCH before its name."""
        return [param for param in super().get_params(ctx) if ctx.command is self or param.name != "search"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; after `--`, a command's name is a search too. `list` lists, as in other programs."""
        if args and args[0] in self.commands:  # no option is given here
            _unconverted(self, ctx)
            return list(super().parse_args(ctx, ["", *args]))
        ctx.allow_interspersed_args, ctx.allow_extra_args = True, False
        return list(super().parse_args(ctx, args[1:] if args[:1] == ["list"] else args))


def usage_error(error: Any, takers: Callable[[str], Sequence[str]] = lambda _: ()) -> str:
    """What is wrong with the arguments, in a sentence; `takers` names the commands that take an option."""
    if not hasattr(error, "possibilities") or not hasattr(error, "option_name"):  # all but click's NoSuchOption
        from pydantic import ValidationError  # only then is it loaded already

        from flux_klein_async.models import findings

        # Some releases of typer have pydantic read the values, and repeat its words.
        if isinstance(error.__cause__, ValidationError):
            error.message = "; ".join(findings(error.__cause__).values())
        text = str(error.format_message())
        options = [option for parameter in error.ctx.command.params for option in parameter.opts] if error.ctx else []
        if "extra arg" not in text or "--journal" not in options:
            return text
        is_batch = error.ctx.command.name == "batch"
        return f"{text}: {'there is one FILE, and ' if is_batch else ''}a journal goes after --journal"
    name = error.option_name
    known = [option for parameter in error.ctx.command.params for option in parameter.opts] if error.ctx else []
    # The rest of a name first ("-m", "--output", "--dir"), then the nearest of what click finds alike.
    near = [option for option in known if option.startswith(f"-{name}") or (len(name) > 3 and name[1:] in option)]
    near = near or get_close_matches(name, error.possibilities or (), 1, _ALIKE)
    if (known_as := name.replace("_", "-")) in _ELSEWHERE:
        advice = f": {_ELSEWHERE[known_as]}"
    elif error.ctx and error.ctx.parent is not None and (others := takers(name)):
        advice = f": `flux-klein {others[0]}` takes it"
    elif near:
        advice = f"; did you mean {' or '.join(near)}?"
    elif error.ctx and error.ctx.command.name == "generate" and name in _NAMES:
        advice = ": `generate` names files after the prompt; `batch` has --names, and -o is the directory"
    elif error.ctx and error.ctx.command.name == "generate":
        advice = "; a prompt that starts with a dash goes after --"
    elif error.ctx and error.ctx.parent is None:
        advice = "; the options of a command go after its name"
    else:
        advice = ""
    return f"No such option {shown(name[:LONGEST])}{advice}"
