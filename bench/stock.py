"""The same application under gunicorn's own gthread worker and arbiter, to measure hostprep's worker against."""

from __future__ import annotations

import os
from typing import Any

import gunicorn.app.base

from hostprep.serve.server import Application
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver


class Stock(gunicorn.app.base.BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def load_config(self) -> None:
        self.cfg.set("worker_class", "gthread")
        self.cfg.set("threads", 64)
        self.cfg.set("keepalive", 75)
        self.cfg.set("bind", f"unix:{settings.socket}")
        self.cfg.set("accesslog", None)
        self.cfg.set("loglevel", "warning")
        if "control_socket_disable" in self.cfg.settings:  # newer gunicorns open one in the home directory
            self.cfg.set("control_socket_disable", "true")

    def load(self) -> Any:
        return Application(driver)


if __name__ == "__main__":
    settings = Settings.read(os.environ)
    driver = Driver.open(settings, create=True)
    Stock().run()
