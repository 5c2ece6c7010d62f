"""What all commands have beside their own options: -q, -v and --config, and options from elsewhere.

An option `--ranks-per-node` is also EPLB_RANKS_PER_NODE, and where `cli/settings` allows it the key
`ranks-per-node` of a file. The command line beats the variable, which beats the file. Nothing of this is
written at an option: whatever a command has, has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import typer
import typer.core

from eplb_cli import render
from eplb_cli.cli import mistakes
from eplb_cli.errors import UsageError
from eplb_cli.progress import details, is_quiet, tell, unsaid

if TYPE_CHECKING:
    from eplb_cli.cli.settings import Kind, Setting

VARIABLE_PREFIX = "EPLB_"

CONFIG = "config"
QUIET = "quiet"
VERBOSE = "verbose"

format_of_file: ContextVar[str] = ContextVar("format_of_file", default="")
"""What a file sets for --format, if anything."""

_COMMON = (
    ((QUIET, "-q", "--quiet"), "Print nothing but the result and errors.", None),
    ((VERBOSE, "-v", "--verbose"), "Say where options came from, and what was decided, on stderr.", None),
    (
        (CONFIG, "--config"),
        "The file that may set options, instead of the eplb.toml or pyproject.toml that lies here.",
        "FILE|none",
    ),
)


def option_name(param: Any) -> str:  # noqa: ANN401 - a parameter of click's
    """What a file calls an option: its first long name, without dashes."""
    return str(next(name for name in param.opts if name.startswith("--"))).removeprefix("--")


def variable_of(param: Any) -> str:  # noqa: ANN401 - as above
    """The variable of an option."""
    return VARIABLE_PREFIX + option_name(param).replace("-", "_").upper()


def choices_of(param: Any) -> list[str]:  # noqa: ANN401 - as above
    """The words of which a parameter takes one; none where it takes other things."""
    return [str(getattr(choice, "value", choice)) for choice in getattr(param.type, "choices", ())]


class _FromFile(dict[str, Any]):
    """What a file sets, by the names of a command's parameters; looked for when click first asks.

    So `--help` reads no file, and --config has been understood by then.
    """

    def __init__(self, command: Command, ctx: Any) -> None:  # noqa: ANN401 - a context of click's
        super().__init__()
        self._command, self._ctx = command, ctx
        self.settings: dict[str, Setting] | None = None

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as of any dict
        """The value that the file sets for a parameter."""
        if self.settings is None and name != CONFIG:
            self._read()
        return super().get(name, default)

    def _read(self) -> None:
        from eplb_cli.cli.settings import read_settings

        self.settings = {}
        group = self._ctx.parent.command
        settings = read_settings(self._ctx.params.get(CONFIG), group.commands, group.has_option)
        if settings is None:
            return
        options = {option_name(option): option for option in self._command.options()}
        kinds = {name: _kind(option) for name, option in options.items()}
        found = settings.for_command(str(self._command.name), kinds)
        self.settings = {options[name].name: setting for name, setting in found.items()}
        self.update({name: setting.value for name, setting in self.settings.items()})
        format_of_file.set(str(super().get("output_format", "")))


class Command(typer.core.TyperCommand):
    """A command of which every option may also come from a variable, and many from a file."""

    def __init__(self, *args: Any, params: Any = None, **kwargs: Any) -> None:  # noqa: ANN401 - as typer calls it
        common = [
            typer.core.TyperOption(
                param_decls=[*names],
                help=text,
                metavar=metavar,
                is_flag=metavar is None,
                default=None if metavar else False,
                is_eager=names[0] == CONFIG,
            )
            for names, text, metavar in _COMMON
        ]
        super().__init__(*args, params=[*(params or ()), *common], **kwargs)
        for option in self.options():
            option.envvar, option.show_envvar = variable_of(option), False
            if choices := choices_of(option):  # which versions of typer show in several ways
                option.metavar = option.metavar or f"<{'|'.join(choices)}>"

    def options(self) -> Iterator[Any]:
        """Its options, without --help."""
        return (param for param in self.params if param.param_type_name == "option")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - a context of click's
        """Understand a command line: a mistake says what was meant, or where the value came from.

        Raises:
            UsageError: EP001, a variable or a file says what cannot be.
        """
        if not ctx.resilient_parsing:  # which a shell does that completes a word
            ctx.default_map = _FromFile(self, ctx)
        given = list(args)
        try:
            return list(super().parse_args(ctx, args))
        except mistakes.Mistake as error:
            param = getattr(error, "param", None)
            if param is None or not (source := _source(ctx, param)):
                raise
            word = param.consume_value(ctx, {})[0]
            if _is_for_others(ctx, param, word):
                return self._parse_without(ctx, param, given)
            mistakes.say_what_was_meant(error)
            raise mistakes.as_error_of(source, word, error) from error

    def _parse_without(self, ctx: Any, option: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - as above
        """Understand a command line, and leave to other commands what a variable or a file says to all.

        EPLB_FORMAT=github, which `validate` takes, is no mistake of whoever calls `plan` beside it.
        """
        rest = self.parse_args(ctx, [*_words(option, option.default), *args])
        ctx.set_parameter_source(option.name, type(ctx.get_parameter_source(option.name))["DEFAULT"])
        return rest

    def get_help(self, ctx: Any) -> str:  # noqa: ANN401 - as above
        """The help, which is the same wherever one stands."""
        ctx.default_map = None
        return str(super().get_help(ctx))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as above
        """Run the command, as loud as it was asked to be.

        Raises:
            UsageError: as the command does, with where options came from that the message names.
        """
        _set_volume(ctx)
        sources = {option: source for option in self.options() if (source := _source(ctx, option))}
        if details.get():
            self._tell_options(ctx, sources)
        unsaid.set([word for option in sources for word in _words(option, ctx.params[option.name])])
        for name in (QUIET, VERBOSE, CONFIG):
            del ctx.params[name]
        try:
            return super().invoke(ctx)
        except UsageError as error:
            mistakes.add_sources(error, {f"--{option_name(at)}": source for at, source in sources.items()})
            raise

    def _tell_options(self, ctx: Any, sources: dict[Any, str]) -> None:  # noqa: ANN401 - as above
        """Every option that was set, and where."""
        for option in self.options():
            if option in sources or ctx.get_parameter_source(option.name).name == "COMMANDLINE":
                said = " ".join(_words(option, ctx.params[option.name]) or [f"--{option_name(option)} off"])
                tell("option", f"{said}, from {sources.get(option, 'the command line')}")


def _kind(option: Any) -> Kind:  # noqa: ANN401 - an option of click's
    return "flag" if option.is_flag else "words" if option.multiple else "word"


def _words(option: Any, value: Any) -> list[str]:  # noqa: ANN401 - an option of click's, and what it has
    """An option as a command line has it; nothing for a flag that is off."""
    name = f"--{option_name(option)}"
    if option.is_flag:
        return [name] if value else []
    values = value if option.multiple else [value]
    return [word for each in values for word in (name, str(getattr(each, "value", each)))]


def _source(ctx: Any, param: Any) -> str:  # noqa: ANN401 - a context and a parameter of click's
    """The variable, or the key and the file, that a value came from; empty where it was neither."""
    source = ctx.get_parameter_source(param.name)
    if source is not None and source.name == "ENVIRONMENT":
        return str(param.envvar)
    if source is not None and source.name == "DEFAULT_MAP":
        return f"{option_name(param)} in {ctx.default_map.settings[param.name].place}"
    return ""


def _is_for_others(ctx: Any, option: Any, word: object) -> bool:  # noqa: ANN401 - as above
    """Whether a value that a command does not take is one that other commands take, said to all of them."""
    is_of_file = ctx.get_parameter_source(option.name).name == "DEFAULT_MAP"
    is_general = not is_of_file or ctx.default_map.settings[option.name].is_general
    is_known = is_general and ctx.parent.command.takes(option_name(option), word)
    return is_known and option.default is not None


def _set_volume(ctx: Any) -> None:  # noqa: ANN401 - as above
    """-q or -v; where each is said by another, the command line, else the variable. Raises EP001 for both."""
    ranks = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")
    said = {
        name: ranks.index(ctx.get_parameter_source(name).name)
        for name in (QUIET, VERBOSE)
        if ctx.params[name]
    }
    if len({*said.values()}) < len(said):
        raise UsageError("EP001", "-q and -v contradict each other", "leave one of the two out")
    loudest = min(said, key=said.__getitem__, default="")
    is_quiet.set(loudest == QUIET)
    details.set(render.print_detail if loudest == VERBOSE else None)
