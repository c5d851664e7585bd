"""Writes into the documentation what the code already says: signatures, docstrings, fields, errors and commands.

A page asks for a part with a pair of comments, and this program fills what is between them:

    <!-- generated: object optimum_qala.models.length_config:LengthConfig -->
    <!-- /generated -->

Run `python docs/reference/generate.py` after a change to a docstring, a default or a flag; a test fails while a page
is out of date. The code is parsed and not imported, so no extra needs to be installed.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any


DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
NAMESPACE = ROOT / "optimum_qala" / "_namespace"  # where the command line lies in a checkout

LONGEST_SIGNATURE = 96
# Methods that transformers calls and users do not.
FRAMEWORK_HOOKS = {"get_input_embeddings", "postprocess", "preprocess", "set_input_embeddings"}

_BLOCK = re.compile(r"(<!-- generated: (?P<what>[^\n]*?) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(?P<name>[\w.]+): ?(?P<text>.*)$")
_CODE_SPAN = re.compile(r"(`[^`]*`)")

Definition = ast.FunctionDef | ast.ClassDef


def fill(text: str) -> str:
    """Fill every generated part of a page.

    Args:
        text: Markdown.

    Returns:
        The same page with its generated parts renewed.
    """
    return _BLOCK.sub(lambda match: f"{match[1]}\n{render(match['what'])}\n\n{match[3]}", text)


def render(what: str) -> str:
    """Make one generated part.

    Args:
        what: Name of the kind, and what it is about.

    Returns:
        Markdown.
    """
    kind, *arguments = what.split()
    return "\n".join(KINDS[kind](*arguments)).strip()


@lru_cache
def module_tree(module: str) -> ast.Module:
    """Parse a module of the package.

    Args:
        module: Its dotted name.

    Returns:
        Its syntax tree.
    """
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def definition(place: str) -> Definition:
    """Find a class or a function.

    Args:
        place: "module:name".

    Returns:
        Its definition.
    """
    module, name = place.split(":")
    for node in module_tree(module).body:
        if isinstance(node, Definition) and node.name == name:
            return node
    raise KeyError(f"{module} defines no {name}")


def constant(place: str) -> Any:
    """Evaluate a constant of a module, or one that it imports from another module of the package.

    Args:
        place: "module:name".

    Returns:
        Its value.
    """
    module, name = place.split(":")
    for node in module_tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)  # type: ignore[union-attr]
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return constant(f"{node.module}:{name}")
    raise KeyError(f"{module} defines no {name}")


def public_names() -> dict[str, str]:
    """Map every public name of the package, without `__version__`, to the module that defines it."""
    places = dict(constant("optimum_qala:_LAZY"))
    for node in module_tree("optimum_qala").body:
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("optimum_qala"):
            places |= {alias.name: node.module for alias in node.names}
    return {name: places[name] for name in constant("optimum_qala:__all__") if name != "__version__"}


def docstring(node: Definition | ast.Module) -> str:
    """Return a docstring without its indentation, empty if there is none."""
    return inspect.cleandoc(ast.get_docstring(node, clean=False) or "")


def summary(node: Definition | ast.Module) -> str:
    """Return the first sentence of a docstring, on one line."""
    first = " ".join(docstring(node).split("\n\n")[0].split())
    return escape(first.split(". ")[0].rstrip(".") + ".")


def escape(text: str) -> str:
    """Keep a page from reading `<` as the start of a tag."""
    parts = _CODE_SPAN.split(text)
    return "".join(part if part.startswith("`") else part.replace("<", r"\<") for part in parts)


def cell(text: str) -> str:
    """Make one cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def sections(text: str) -> dict[str, str]:
    """Split a Google docstring: "" is what comes before the first section."""
    parts = _SECTION.split(text)
    found = {"": parts[0].strip("\n")}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        # Text that is not indented follows the section and belongs to the description.
        lines = body.strip("\n").split("\n")
        end = next((number for number, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
        found[name] = "\n".join(lines[:end]).rstrip()
        found[""] = f"{found['']}\n\n{chr(10).join(lines[end:])}".strip("\n")
    return found


def entries(section: str) -> dict[str, list[str]]:
    """Split a section with named entries into lines by name."""
    found: dict[str, list[str]] = {}
    name = None
    for line in section.split("\n"):
        match = _ENTRY.match(line)
        if match:
            name = match["name"]
            found[name] = [match["text"]]
        elif name is not None:
            found[name].append(line[8:])
    return found


def docstring_lines(text: str) -> Iterator[str]:
    """Turn a Google docstring into Markdown."""
    parts = sections(text)
    yield escape(parts.pop(""))
    yield ""
    for name, body in parts.items():
        if name in ("Returns", "Yields"):
            yield f"**{name}** " + escape(" ".join(inspect.cleandoc(body).split("\n")))
        else:
            yield f"**{'Parameters' if name == 'Args' else name}**"
            yield ""
            for entry, lines in entries(body).items():
                first, *rest = (escape(line) for line in lines)
                yield f"- `{entry}`: {first}".rstrip()
                yield from (f"  {line}".rstrip() for line in rest)
        yield ""


def _arguments(function: ast.FunctionDef, is_method: bool) -> list[str]:
    given = function.args
    arguments = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(given.defaults))
    defaults += given.defaults
    pairs = list(zip(arguments, defaults, strict=True))[1 if is_method else 0 :]
    written = [_argument(argument, default) for argument, default in pairs]
    if given.vararg:
        written.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        written.append("*")
    written += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        written.append(f"**{given.kwarg.arg}")
    return written


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return argument.arg + ("" if default is None else f"={ast.unparse(default)}")


def signature(name: str, arguments: list[str]) -> str:
    """Write a call, one argument a line where it is long."""
    line = f"{name}({', '.join(arguments)})"
    if len(line) <= LONGEST_SIGNATURE:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def _decorators(node: Definition) -> set[str]:
    return {ast.unparse(one).split("(")[0] for one in node.decorator_list}


def _literal(value: ast.expr, module: str) -> str:
    """Write a default; where it is a constant of the module, the constant's value."""
    if isinstance(value, ast.Name):
        return repr(constant(f"{module}:{value.id}"))
    return ast.unparse(value)


def class_fields(node: ast.ClassDef, module: str) -> list[tuple[str, str, str]]:
    """List the annotated fields of a class as (name, default, help)."""
    found = []
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if item.target.id.startswith("_") or "ClassVar" in ast.unparse(item.annotation):
            continue
        default, text = "" if item.value is None else _literal(item.value, module), ""
        if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) == "field":
            options = {keyword.arg: keyword.value for keyword in item.value.keywords}
            if "default_factory" in options:
                default = {"list": "[]", "dict": "{}"}[ast.unparse(options["default_factory"])]
            else:
                default = ast.unparse(options["default"])
            if "metadata" in options:
                text = ast.literal_eval(options["metadata"])["help"]
        found.append((item.target.id, default, text))
    return found


def _methods(node: ast.ClassDef, module: str) -> list[ast.FunctionDef]:
    """List the public methods of a class, then those of its base classes in this package."""
    found = {
        item.name: item
        for item in node.body
        if isinstance(item, ast.FunctionDef)
        and (item.name == "__call__" or not item.name.startswith("_"))
        and item.name not in FRAMEWORK_HOOKS
    }
    for base in node.bases:
        for other in module_tree(module).body:
            if isinstance(other, ast.ClassDef) and other.name == ast.unparse(base):
                found = {method.name: method for method in _methods(other, module)} | found
            elif isinstance(other, ast.ImportFrom) and (other.module or "").startswith("optimum_qala."):
                for alias in other.names:
                    if alias.name == ast.unparse(base):
                        place = str(other.module)
                        inherited = definition(f"{place}:{alias.name}")
                        if isinstance(inherited, ast.ClassDef):
                            found = {method.name: method for method in _methods(inherited, place)} | found
    return list(found.values())


def _class_arguments(node: ast.ClassDef, module: str) -> list[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _arguments(item, is_method=True)
    if "dataclass" in _decorators(node):
        return [name + (f"={default}" if default else "") for name, default, _ in class_fields(node, module)]
    return []


def _code(text: str) -> list[str]:
    return ["```text", text, "```", ""]


def render_object(place: str, level: str = "3") -> Iterator[str]:
    """Document a class or a function, with its public methods."""
    node = definition(place)
    module, name = place.split(":")
    heading = "#" * int(level)
    yield f"{heading} {name}"
    yield ""
    if isinstance(node, ast.FunctionDef):
        yield from _code(signature(name, _arguments(node, is_method=False)))
        yield from docstring_lines(docstring(node))
        return
    arguments = _class_arguments(node, module)
    bases = [ast.unparse(base) for base in node.bases]
    yield f"Defined in `{module}`" + (f"; a `{'`, `'.join(bases)}`." if bases else ".")
    yield ""
    if arguments and len(arguments) <= 12:
        yield from _code(signature(name, arguments))
    yield from docstring_lines(docstring(node))
    for method in _methods(node, module):
        decorators = _decorators(method)
        if "property" in decorators:
            yield f"{heading}# {name}.{method.name}"
            yield ""
        elif any(one.endswith(".setter") for one in decorators):
            continue
        else:
            yield f"{heading}# {name}.{method.name}()"
            yield ""
            yield from _code(signature(method.name, _arguments(method, is_method="staticmethod" not in decorators)))
        yield from docstring_lines(docstring(method))


def render_module(module: str, *without: str) -> Iterator[str]:
    """Document every public class and function of a module, in the order of the file."""
    wanted = set(constant(f"{module}:__all__")) - set(without)
    for node in module_tree(module).body:
        if isinstance(node, Definition) and node.name in wanted:
            yield from render_object(f"{module}:{node.name}")


def render_names() -> Iterator[str]:
    """List the public names of the package."""
    yield "| name | what it is |"
    yield "|---|---|"
    for name, module in public_names().items():
        yield f"| [`{name}`](#{name.lower()}) | {cell(summary(definition(f'{module}:{name}')))} |"


def render_api() -> Iterator[str]:
    """Document every public name of the package."""
    for name, module in public_names().items():
        yield from render_object(f"{module}:{name}", "2")


def render_fields(place: str) -> Iterator[str]:
    """List the fields of a class that its docstring or its metadata explains, with defaults."""
    node = definition(place)
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{place} is not a class")
    texts = {name: " ".join(lines) for name, lines in entries(sections(docstring(node)).get("Args", "")).items()}
    yield "| field | default | meaning |"
    yield "|---|---|---|"
    for name, default, text in class_fields(node, place.split(":")[0]):
        text = texts.get(name, text)
        if text:
            yield f"| `{name}` | {f'`{default}`' if default else 'required'} | {cell(escape(text))} |"


def render_other_fields(place: str) -> Iterator[str]:
    """List the fields of a class that its docstring leaves to another class, with defaults."""
    node = definition(place)
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{place} is not a class")
    explained = entries(sections(docstring(node)).get("Args", ""))
    yield "| field | default |"
    yield "|---|---|"
    for name, default, text in class_fields(node, place.split(":")[0]):
        if name not in explained and not text:
            yield f"| `{name}` | `{default}` |"


def render_errors() -> Iterator[str]:
    """List the error classes, base class first."""
    nodes = [
        node
        for module in ("optimum_qala.models.errors", "optimum_qala.errors")
        for node in module_tree(module).body
        if isinstance(node, ast.ClassDef)
    ]
    yield "| error | is also | meaning |"
    yield "|---|---|---|"
    for node in nodes:
        bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
        yield f"| `{node.name}` | {bases} | {cell(escape(docstring(node)))} |"


def render_extras() -> Iterator[str]:
    """List the extras and the modules that they bring."""
    yield "| extra | brings |"
    yield "|---|---|"
    for extra, modules in constant("optimum_qala._compat:EXTRAS").items():
        yield f"| `{extra}` | {', '.join(f'`{module}`' for module in modules)} |"


def render_versions() -> Iterator[str]:
    """List what the package needs: the bounds in setup.cfg and the tested versions in constraints.txt."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {_project(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line and line[0] != "#"}
    extras = config["options.extras_require"]
    wanted = {"": config["options"]["install_requires"], **{name: extras[name] for name in _user_extras(extras)}}
    yield "| library | extra | supported | tested |"
    yield "|---|---|---|---|"
    for extra, requirements in wanted.items():
        for name, bounds in re.findall(r"^([\w-]+)(\S*)$", requirements.strip(), re.MULTILINE):
            tested = pins[_project(name)]
            yield f"| {name} | {f'`{extra}`' if extra else ''} | {cell(escape(f'`{bounds}`'))} | {tested} |"


def _project(name: str) -> str:
    return name.lower().replace("_", "-")


def _user_extras(extras: Iterable[str]) -> list[str]:
    known = constant("optimum_qala._compat:EXTRAS")
    return [extra for extra in extras if extra in known]


@lru_cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """Build the parser of every command."""
    if str(NAMESPACE) not in sys.path:
        sys.path.append(str(NAMESPACE))
    register = importlib.import_module("optimum.commands.register.register_qala")
    parsers = {}
    for info in register.QuaLACommand.SUBCOMMANDS:
        parser = argparse.ArgumentParser(prog=f"optimum-cli qala {info.name}", add_help=False)
        info.subcommand_class.parse_args(parser)
        parsers[info.name] = parser
    return parsers


def render_commands() -> Iterator[str]:
    """Document every command: description, flags by group, examples."""
    for name, parser in commands().items():
        yield f"### {name}"
        yield ""
        yield escape(" ".join((parser.description or "").split()))
        yield ""
        for group in parser._action_groups:
            if group._group_actions:
                yield from _flags(parser, group)
        examples = (parser.epilog or "").partition("examples:\n")[2].partition("\n\nexit codes")[0]
        yield from ["```text", inspect.cleandoc(examples), "```", ""]


def _flags(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[str]:
    is_named = group.title not in ("options", "positional arguments", "optional arguments")
    yield f"| {group.title if is_named else 'flag'} | meaning |"
    yield "|---|---|"
    for action in group._group_actions:
        value = ""
        if action.nargs != 0:
            choices = "|".join(action.choices) if action.choices else None
            value = f" {choices or action.metavar}"
        needed = "; required" if action.required else ""
        yield f"| `{cell(action.option_strings[-1] + value)}` | {cell(escape((action.help or '') + needed))} |"
    yield ""


KINDS: dict[str, Callable[..., Iterator[str]]] = {
    "api": render_api,
    "commands": render_commands,
    "errors": render_errors,
    "extras": render_extras,
    "fields": render_fields,
    "module": render_module,
    "names": render_names,
    "object": render_object,
    "other-fields": render_other_fields,
    "versions": render_versions,
}


def pages() -> list[Path]:
    """List the pages of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def main() -> int:
    """Renew every page; with `--check`, only say which are out of date."""
    check = "--check" in sys.argv[1:]
    outdated = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            outdated.append(page)
            if not check:
                page.write_text(filled, encoding="utf-8")
    for page in outdated:
        sys.stdout.write(f"{'out of date' if check else 'written'}: {page.relative_to(ROOT)}\n")
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
