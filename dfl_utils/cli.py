"""The command `dfl`: build the book, run one chapter, list parameters, check the published results."""

import argparse
import os
import sys

from dfl_utils import chapter as chapters
from dfl_utils import provenance


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 1 where the build or the results failed, or 2 for bad input, after one line on stderr.
    """
    arguments = parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    except chapters.BuildFailed as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("stopped; the same command goes on where this one was", 130)


def parser() -> argparse.ArgumentParser:
    """The command line of `dfl`."""
    top = argparse.ArgumentParser(prog="dfl", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    book = add("book", _book, "execute what changed and render the book")
    book.add_argument("--scale", choices=chapters.SCALES, default="quick", help="parameters of params/SCALE.yml")
    book.add_argument("--no-html", action="store_true", help="execute the chapters only")
    book.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", help="chapters at a time (2; paper: 1)")
    run = add("run", _run, "execute one chapter")
    run.add_argument("chapter", metavar="CHAPTER", help="the notebook's name, as `dfl chapters` shows it")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    run.add_argument("--scale", choices=chapters.SCALES, help="start from params/SCALE.yml, not from the defaults")
    add("chapters", _chapters, "list the chapters and their parameters")
    add("check", _check, "say which published results the tree would no longer make")
    add("data", _data, "write the embedded world's data sets")
    add("quality", _quality, "measure the embedded models")
    return top


def _complain(error: object, code: int) -> int:
    print(f"dfl: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _book(arguments: argparse.Namespace) -> None:
    from dfl_utils import book

    # A GPU holds one chapter's models; on a CPU every chapter has a core of its own.
    jobs = arguments.jobs or (1 if arguments.scale == "paper" else min(2, os.cpu_count() or 1))
    index = book.build(arguments.scale, html=not arguments.no_html, jobs=jobs)
    if index:
        print(f"the book: {index}")


def _run(arguments: argparse.Namespace) -> None:
    from dfl_utils import execution

    source = chapters.find(arguments.chapter)
    values = chapters.check(source, dict(arguments.p), typed=True)
    print(f"executed copy: {execution.run_chapter(source.stem, values, arguments.scale)}")


def _chapters(arguments: argparse.Namespace) -> None:
    for name, source in chapters.sources().items():
        print(name)
        for key, parameter in chapters.parameters(source).items():
            comment = f"  # {parameter.comment}" if parameter.comment else ""
            print(f"  {key} = {parameter.default!r}{comment}")


def _check(arguments: argparse.Namespace) -> int:
    from dfl_utils import exhibits

    sentences = [sentence for profile in exhibits.published() for sentence in exhibits.stale(profile)]
    print("\n".join(sentences) or f"up to date: {', '.join(exhibits.published()) or 'nothing is published yet'}")
    return 1 if sentences else 0


def _data(arguments: argparse.Namespace) -> None:
    from dfl_utils.mini import splits

    splits.write(provenance.ROOT / "data" / "mini" / "world", progress=True)


def _quality(arguments: argparse.Namespace) -> int | None:
    from dfl_utils.mini import quality_report

    return quality_report.main([])
