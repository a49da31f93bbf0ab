"""
Check the way to the database from where the functions run, step by step; to be invoked by hand after a deployment.

With {"prefix": "REPORTS_"} in the event it is the database of REPORTS_PLUNGEPOOL_HOST and its like. With {"rls": true,
"schemas": ["tenants"]} it is also looked at whether row-level security holds for the function's role there. With
{"slow": {}} the answer is another: the statements that cost the database most, as `plungepool slow --json` lists them;
{"slow": {"by": "mean", "limit": 5}} chooses.
"""

from aws_lambda_powertools import Logger

from plungepool import checks, ranking

logger = Logger()


@logger.inject_lambda_context
def handler(event: dict, context: object) -> dict:
    asked = event if isinstance(event, dict) else {}
    if isinstance(slow := asked.get("slow"), dict):
        listed = ranking.rank_process(asked.get("prefix", ""), by=slow.get("by", "total"), limit=slow.get("limit", 10))
        logger.info("slow", **listed)
        return listed
    result = checks.check_process(
        asked.get("prefix", ""), rls=asked.get("rls") is True, schemas=asked.get("schemas") or ()
    )
    for check in result["checks"]:
        write = logger.info if check["state"] == "ok" else logger.warning
        write(check["found"], check=check["name"], state=check["state"], cure=check["cure"])
    return result
