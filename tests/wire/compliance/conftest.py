"""SQLAlchemy's pytest plugin; it takes a whole pytest process for itself, so nothing but the suite runs beside it."""

import pytest

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.testing.plugin.pytestplugin import *
