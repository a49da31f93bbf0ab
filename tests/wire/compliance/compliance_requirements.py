"""
What SQLAlchemy's suite may ask of PostgreSQL through this dialect.

SQLAlchemy's base class leaves closed what only some databases have; here everything is open that SQLAlchemy's own
run against `postgresql+pg8000` opens, and more. What stays closed is in `EXCLUSIONS`, each with its reason.
"""

import sqlalchemy
from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

IS_2_0 = sqlalchemy.__version__.startswith("2.0.")

# The base class closes these for databases in general; PostgreSQL has them.
_SUPPORTED = """
    array_type autocommit cast_precision_numerics_many_significant_digits check_constraint_reflection
    column_collation_reflection comment_reflection comment_reflection_full_unicode computed_columns
    computed_columns_reflect_persisted computed_columns_stored constraint_comment_reflection create_or_replace_view
    create_table_as create_temp_table_as cross_schema_fk_reflection ctes ctes_on_dml ctes_with_update_delete
    ctes_with_values date_historic datetime_historic datetime_interval datetime_literals datetime_timezone
    default_schema_name_switch delete_from expression_server_defaults fetch_expression fetch_first fetch_no_order_by
    fetch_offset_with_options fetch_ties fk_constraint_option_reflection_ondelete_noaction
    fk_constraint_option_reflection_ondelete_restrict fk_constraint_option_reflection_onupdate_restrict
    float_or_double_precision_behaves_generically foreign_key_constraint_name_reflection
    foreign_key_constraint_option_reflection_ondelete foreign_key_constraint_option_reflection_onupdate has_temp_table
    identity_columns identity_columns_standard index_ddl_if_exists index_reflects_included_columns
    indexes_check_column_order indexes_with_expressions infinity_floats inline_check_constraint_reflection
    isolation_level json_array_indexes json_type legacy_unconditional_json_extract materialized_views order_by_collation
    percent_schema_names precision_numerics_enotation_small precision_numerics_many_significant_digits
    precision_numerics_retains_significant_digits reflect_indexes_with_expressions reflect_table_options
    reflect_tables_no_columns reflects_pk_names regexp_match regexp_replace repeated_column_foreign_keys savepoints
    schema_create_delete server_defaults skip_autocommit_rollback supports_bitwise_and supports_bitwise_not
    supports_bitwise_or supports_bitwise_shift supports_bitwise_xor supports_distinct_on table_ddl_if_exists
    table_value_constructor temp_table_comment_reflection temp_table_names temporary_views tuple_in tuple_in_w_empty
    two_phase_transactions unicode_ddl unique_constraints_reflect_as_index update_from uuid_data_type
    view_column_reflection view_reflection views window_functions window_range window_range_non_numeric
    window_range_numeric datetime_timezone_historic time_timezone json_deserializer_binary
""".split()

# What SQLAlchemy 2.0 does not have for PostgreSQL, by any driver.
FROM_2_1_ON = {
    "reflect_table_options": "Inspector.get_table_options() knows MySQL's and Oracle's alone",
    "computed_columns_virtual": "it always writes STORED, the one kind before PostgreSQL 18",
}

# More than EXCLUDED_FOR_PG8000 may not stand here.
EXCLUSIONS = {
    "json_deserializer_binary": "the driver decodes a value before a converter sees it: a custom deserializer gets str",
}
# What SQLAlchemy's own run against `postgresql+pg8000` leaves out, in its test/requirements.py, of what it asks of
# others.
EXCLUDED_FOR_PG8000 = {
    "datetime_timezone_historic",
    "infinity_floats",
    "json_deserializer_binary",
    "time_timezone",
}


class Requirements(SuiteRequirements):
    """What is open, by name; the few that need more than a name are written out."""

    @property
    def computed_columns_virtual(self):
        return exclusions.closed() if IS_2_0 else exclusions.only_on("postgresql >= 18")

    @property
    def computed_columns_default_persisted(self):
        return exclusions.open() if IS_2_0 else exclusions.only_on("postgresql < 18")

    def get_order_by_collation(self, config):
        return "POSIX"

    def get_isolation_levels(self, config):
        levels = config.db.dialect.get_isolation_level_values(None)
        assert set(levels) == {"AUTOCOMMIT", "READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE"}
        return {"default": "READ COMMITTED", "supported": levels}


for _name in _SUPPORTED:
    if _name not in EXCLUSIONS and not (IS_2_0 and _name in FROM_2_1_ON):
        setattr(Requirements, _name, property(lambda _: exclusions.open()))
