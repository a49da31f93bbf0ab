"""Whose a request is."""

import os
import re

from aws_lambda_powertools.event_handler.exceptions import ForbiddenError, UnauthorizedError
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2

# As the issuer of the tokens calls it: custom:tenant_id with Cognito, an address of one's own with Auth0.
CLAIM = os.environ.get("TENANT_CLAIM", "tenant_id")
TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


def tenant_of(event: APIGatewayProxyEventV2) -> str:
    """
    Return the tenant of the token that the API's JWT authorizer has verified: what a client cannot choose.

    Headers, path and body are the client's own, and are not asked. Raises UnauthorizedError (401) without a verified
    token, and ForbiddenError (403) for one that names no tenant.
    """
    claims = event.request_context.authorizer.jwt_claim
    if not claims:
        raise UnauthorizedError("Sign in first")
    tenant = claims.get(CLAIM)
    if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
        raise ForbiddenError("The token names no tenant")
    return tenant
