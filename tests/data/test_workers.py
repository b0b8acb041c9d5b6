"""Worker processes start afresh, without the main script."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import write_rows

SCRIPT = """
print("the script runs", flush=True)
import sys
from zephyr_jax.chat.tokenizer import load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.segments import CONVERSATION

tokenizer = load_chat_tokenizer("zephyr", load_tokenizer(sys.argv[1]))
examples = load_examples(CONVERSATION, DataOptions(num_workers=2).fitted(1), tokenizer, sys.argv[2], "train")
print(len(examples), __file__)
"""


def test_a_script_without_a_guard_runs_once(shared: Path, tmp_path: Path) -> None:
    """As the snippets of docs/python-api.md are written: no `if __name__ == "__main__"`."""
    messages = [{"role": "user", "content": "Name a color."}, {"role": "assistant", "content": "Red."}]
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": messages, "number": number} for number in range(100)])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, shared / "tokenizers" / "mistral-v0.1", rows]
    environment = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == ["the script runs", f"100 {script}"]
