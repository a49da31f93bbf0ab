"""
Check the way to the database from where the functions run, step by step; to be invoked by hand after a deployment.

With {"prefix": "REPORTS_"} in the event it is the database of REPORTS_PLUNGEPOOL_HOST and its like.
"""

from aws_lambda_powertools import Logger

from plungepool import checks

logger = Logger()


@logger.inject_lambda_context
def handler(event: dict, context: object) -> dict:
    result = checks.check_process(event.get("prefix", ""))
    for check in result["checks"]:
        write = logger.info if check["state"] == "ok" else logger.warning
        write(check["found"], check=check["name"], state=check["state"], cure=check["cure"])
    return result
