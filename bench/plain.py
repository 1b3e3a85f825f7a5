"""The plainest Flask application under gunicorn, to measure a start against."""

from __future__ import annotations

import os
from typing import Any

import gunicorn.app.base


class Plain(gunicorn.app.base.BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def load_config(self) -> None:
        self.cfg.set("bind", f"unix:{os.environ['HOSTPREP_SOCKET']}")
        self.cfg.set("worker_class", "gthread")
        self.cfg.set("threads", 16)
        if "control_socket_disable" in self.cfg.settings:
            self.cfg.set("control_socket_disable", "true")
        self.cfg.set("loglevel", "warning")

    def load(self) -> Any:
        from flask import Flask

        app = Flask("plain")
        app.add_url_rule("/Plugin.Activate", view_func=lambda: {"Implements": ["VolumeDriver"]}, methods=["POST"])
        return app


if __name__ == "__main__":
    Plain().run()
