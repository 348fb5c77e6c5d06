"""`experiments.export`: a member of a run for others, and a hub that keeps it."""

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest

import mmvae_jax
from experiments.running import evaluation

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.slow  # commands; the library's tests are fast

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "config.json",
    "description.json",
    "params.safetensors",
    "export.json",
    "README.md",
}


@pytest.fixture(scope="module")
def outcomes(array_run, commands, tmp_path_factory):
    """name -> (outcome, --out) of commands that are run at once."""
    root = tmp_path_factory.mktemp("exports")
    workdir = shutil.copytree(array_run, root / "run")
    changes = {"eval.metrics": ("swd",), "eval.num_examples": 5}
    assert evaluation.evaluate(workdir, changes, None, "2031-05-06") == 0
    changes = {"eval.metrics": ("elbo",)}
    assert evaluation.evaluate(workdir, changes, 10, "2032-07-08") == 0
    (root / "taken").mkdir()
    jobs = {
        "one": (workdir, "--member=beta=1"),
        "other": (workdir, "--member=beta=0.5,seed=0"),
        "earlier": (workdir, "--member=beta=1 --step=10"),
        "taken": (workdir, "--member=beta=1"),
        "any": (workdir, ""),
        "unknown": (workdir, "--member=beta=7"),
        "strange": (workdir, "--member=gamma=7"),
        "no_step": (workdir, "--member=beta=1 --step=7"),
        "no_run": (root / "nowhere", ""),
        "no_name": (workdir, "--member=beta=1 --push=model"),
        "no_token": (workdir, "--member=beta=1 --push=somebody/model"),
        "no_export": ("", "--push=somebody/model"),
        "no_choice": ("", "--push=somebody/model --step=10"),
    }
    no_token = "import os\nos.environ.pop('HF_TOKEN', None)\nos.environ['HF_HOME']='/'"
    described = [
        (
            [
                "experiments.export",
                f"--workdir={place}",
                f"--out={root / name}",
                *flags.split(),
            ],
            no_token,
        )
        for name, (place, flags) in jobs.items()
    ]
    found = commands(described)
    return {
        name: (outcome, root / name) for name, outcome in zip(jobs, found, strict=True)
    }


def test_members_of_a_sweep(outcomes, array_run):
    for name, beta in (("one", 1.0), ("other", 0.5)):
        outcome, folder = outcomes[name]
        assert outcome.code == 0, outcome.stderr
        assert {path.name for path in folder.iterdir()} == FILES
        loaded = mmvae_jax.load(folder)
        wanted = mmvae_jax.load(array_run, beta=beta)
        assert loaded.member == wanted.member and loaded.step == 20
        jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)


def test_the_card_has_the_numbers_with_their_settings(outcomes):
    card = (outcomes["one"][1] / "README.md").read_text()
    assert "On all test examples of arrays, evaluation seed 0" in card
    assert (
        "`eval/swd`, `eval/swd/image`: added on 2031-05-06 with "
        "config.eval.num_examples = 5." in card
    )
    summary = json.loads(
        (outcomes["one"][1].with_name("run") / "summary.json").read_text()
    )
    (member,) = (own for own in summary["members"] if own["beta"] == 1)
    for tag, value in member["metrics"].items():
        assert f"| {tag} | {value:.4g} |" in card
    for part in ("`image`: images, 8 x 8 x 3", "Sutter et al. (2021)", "## Limits"):
        assert part in card


def test_an_earlier_checkpoint_with_its_own_numbers(outcomes, array_run):
    outcome, folder = outcomes["earlier"]
    assert outcome.code == 0, outcome.stderr
    loaded, wanted = (
        mmvae_jax.load(folder),
        mmvae_jax.load(array_run, beta=1.0, step=10),
    )
    assert loaded.step == 10 and loaded.member == wanted.member
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)
    card = (folder / "README.md").read_text()
    summary = json.loads((folder.with_name("run") / "summary.json").read_text())
    (k,) = (k for k, own in enumerate(summary["members"]) if own["beta"] == 1)
    value = summary["evaluations"][-1]["members"][k]["eval/elbo"]
    assert f"| eval/elbo | {value:.4g} |" in card
    assert "`eval/elbo`" in card and "added on 2032-07-08" in card
    assert "2031-05-06" not in card and "eval/swd" not in card


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("taken", "taken exists; choose another --out"),
        ("any", "has 2 members; choose one of: beta=0.5, learning_rate=0.001, seed=0;"),
        ("unknown", "has no member with beta=7; choose one of: beta=0.5, "),
        ("strange", "--member has 'gamma=7'; write beta=1,learning_rate="),
        ("no_step", "checkpoints has no checkpoint 7, it keeps 10, 20"),
        ("no_run", "no folder"),
        ("no_name", "a model of a hub is called USER/NAME, got 'model'"),
        ("no_token", "no token of the hub: set HF_TOKEN"),
        ("no_export", "no token of the hub: set HF_TOKEN"),
        ("no_choice", "--member and --step choose from a run: give its --workdir"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(outcomes, name, line):
    outcome, folder = outcomes[name]
    assert outcome.code == 2
    (said,) = [x for x in outcome.stderr.splitlines() if "error" in x]
    assert line in said
    assert folder.exists() == (name == "taken")
    assert not folder.exists() or not list(folder.iterdir())


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub to create, write and read a repository."""

    revisions: list = []  # each: name -> content

    def log_message(self, *arguments):
        pass

    def _answer(self, content, code=200, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        host = f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self._answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            return self._answer({"url": f"{host}/somebody/model"})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return self._answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "regular",
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        if "/commit/" in path:
            content = dict(self.revisions[-1]) if self.revisions else {}
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    data = base64.b64decode(entry["value"]["content"])
                    content[entry["value"]["path"]] = data
            self.revisions.append(content)
            oid = self._name(len(self.revisions) - 1)
            return self._answer(
                {"commitOid": oid, "commitUrl": f"{host}/somebody/model/commit/{oid}"}
            )
        return self._answer({"error": path}, 404)

    @staticmethod
    def _name(number):
        return hashlib.sha1(str(number).encode()).hexdigest()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        names = {self._name(n): n for n in range(len(self.revisions))}
        names["main"] = len(self.revisions) - 1
        parts = path.strip("/").split("/")
        if parts[:4] == ["api", "models", "somebody", "model"] and self.revisions:
            revision = parts[5] if len(parts) > 5 else "main"
            if revision in names:
                content = self.revisions[names[revision]]
                siblings = [{"rfilename": name} for name in content]
                oid = self._name(names[revision])
                if parts[4:5] == ["tree"]:
                    tree = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in content.items()
                    ]
                    return self._answer(tree)
                found = {"id": "somebody/model", "sha": oid, "siblings": siblings}
                return self._answer(found)
            headers = [("X-Error-Code", "RevisionNotFound")]
            return self._answer({"error": "Invalid rev"}, 404, headers)
        if parts[:3] == ["somebody", "model", "resolve"]:
            data = self.revisions[names[parts[3]]].get("/".join(parts[4:]))
            if data is not None:
                oid = self._name(names[parts[3]])
                tag = hashlib.sha1(data).hexdigest()
                headers = [("ETag", f'"{tag}"'), ("X-Repo-Commit", oid)]
                return self._answer(data, headers=headers)
        headers = [("X-Error-Code", "RepoNotFound")]
        return self._answer({"error": "Repository not found"}, 404, headers)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    """The address of a hub on this machine."""
    Hub.revisions = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READ = """
import sys
import mmvae_jax
from mmvae_jax.errors import UsageError
for address in sys.argv[1:]:
    try:
        found = mmvae_jax.load(address)
        print(found.member.beta, found.step)
    except UsageError as error:
        print("error:", error)
"""


@pytest.mark.slow
def test_a_hub_keeps_exports_and_their_revisions(outcomes, hub, tmp_path):
    pytest.importorskip("huggingface_hub")
    environment = {
        **os.environ,
        **{"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_right"},
        **{"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"},
    }
    environment.pop("HF_HUB_OFFLINE", None)

    def call(*arguments, **changes):
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment | changes,
            timeout=120,
        )

    one, other = (outcomes[name][1] for name in ("one", "other"))
    push = ("-m", "experiments.export", "--push=somebody/model")
    done = call(*push, f"--out={one}", HF_TOKEN="hf_wrong")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: somebody/model cannot be pushed: "), done.stderr
    again = f"again: python -m experiments.export --out={one} --push=somebody/model"
    assert line.endswith(again)
    for folder in (one, other):
        done = call(*push, f"--out={folder}")
        assert done.returncode == 0, done.stderr
        assert "pushed: " in done.stdout
    assert [set(revision) for revision in Hub.revisions] == [FILES, FILES]
    first = Hub._name(0)
    address = "hub:somebody/model"
    names = (address, f"{address}@{first}", f"{address}@gone", "hub:nobody/model")
    done = call("-c", READ, *names)
    last, before, gone, nobody = done.stdout.splitlines()
    assert (last, before) == ("0.5 20", "1.0 20"), done.stderr
    assert gone.startswith(f"error: {address}@gone cannot be read: ")
    assert nobody.startswith("error: hub:nobody/model cannot be read: ")
    away = call("-c", READ, "hub:nobody/model", HF_ENDPOINT="http://127.0.0.1:9")
    (line,) = away.stdout.splitlines()
    assert line.startswith("error: hub:nobody/model cannot be read: ")
