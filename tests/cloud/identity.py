"""A stand-in of Microsoft Entra ID for a service principal with a secret, and of a compute's managed identity.

The service principal's flow: https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow
"""

import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import jwt
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

LOGIN = "https://login.microsoftonline.com"


@dataclass
class Identity:
    """One service principal of one tenant, and the tokens that it was given.

    Attributes:
        lifetime: of the tokens to come, in seconds.
        tokens: all that were issued, with the audience that each is for.
        revoked: those that services refuse before their time.
    """

    tenant: str = "11111111-2222-3333-4444-555555555555"
    client: str = "66666666-7777-8888-9999-000000000000"
    secret: str = field(default_factory=lambda: f"entra~secret~{secrets.token_urlsafe(24)}")
    lifetime: int = 3600
    tokens: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)

    @property
    def environment(self) -> dict[str, str]:
        """What `azure.identity.EnvironmentCredential` reads."""
        return {"AZURE_TENANT_ID": self.tenant, "AZURE_CLIENT_ID": self.client, "AZURE_CLIENT_SECRET": self.secret}

    def issue(self, audience: str, lifetime: int | None = None) -> str:
        """Return a new token."""
        now = int(time.time())
        until = now + (self.lifetime if lifetime is None else lifetime)
        claims = {"aud": audience, "iat": now, "exp": until, "tid": self.tenant, "appid": self.client}
        token = jwt.encode(claims | {"uti": secrets.token_hex(8)}, "a key that nobody checks it with: 32 bytes")
        self.tokens[token] = audience
        return token

    def refusal(self, authorization: str, audience: str) -> str:
        """Why a service refuses an ``Authorization`` header; empty where it does not."""
        kind, _, token = authorization.partition(" ")
        if kind != "Bearer" or token not in self.tokens:
            return "no token, or none of this tenant"
        if not self.tokens[token].startswith(audience):
            return f"the token is for {self.tokens[token]}"
        expired = jwt.decode(token, options={"verify_signature": False, "verify_exp": False})["exp"] <= time.time()
        return "the token has expired" if expired or token in self.revoked else ""


def login_service(identity: Identity) -> FastAPI:
    """Make the login service that gives `identity` its tokens, also as the managed identity of a compute."""
    app = FastAPI()

    @app.get("/{tenant}/v2.0/.well-known/openid-configuration")
    def configuration(tenant: str) -> JSONResponse:
        if tenant != identity.tenant:
            return JSONResponse({"error": "invalid_tenant", "error_description": "AADSTS90002: Tenant not found"}, 400)
        root = f"{LOGIN}/{tenant}"
        return JSONResponse(
            {
                "issuer": f"{root}/v2.0",
                "token_endpoint": f"{root}/oauth2/v2.0/token",
                "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{root}/oauth2/v2.0/devicecode",
            }
        )

    @app.get("/common/discovery/instance")
    def discovery() -> dict[str, object]:
        alias = LOGIN.removeprefix("https://")
        return {
            "tenant_discovery_endpoint": f"{LOGIN}/{identity.tenant}/v2.0/.well-known/openid-configuration",
            "metadata": [{"preferred_network": alias, "preferred_cache": alias, "aliases": [alias]}],
        }

    @app.post("/{tenant}/oauth2/v2.0/token")
    async def token(tenant: str, request: Request) -> JSONResponse:
        form = {key: values[0] for key, values in parse_qs((await request.body()).decode()).items()}
        right = {"grant_type": "client_credentials", "client_id": identity.client, "client_secret": identity.secret}
        if tenant != identity.tenant or {key: form.get(key) for key in right} != right:
            said = "AADSTS7000215: Invalid client secret provided."
            return JSONResponse({"error": "invalid_client", "error_description": said}, 401)
        audience = form["scope"].removesuffix(".default").rstrip("/")
        given = {"token_type": "Bearer", "expires_in": identity.lifetime, "access_token": identity.issue(audience)}
        return JSONResponse(given)

    # As an Azure ML compute gives tokens: azure/identity/_credentials/azure_ml.py in the client.
    @app.get("/MSI/token")
    def managed(resource: str, request: Request) -> JSONResponse:
        if request.headers.get("secret") != identity.secret or request.query_params["api-version"] != "2017-09-01":
            return JSONResponse({"error": "unauthorized"}, 401)
        until, token = str(int(time.time()) + identity.lifetime), identity.issue(resource.rstrip("/"))
        given = {"access_token": token, "expires_on": until, "resource": resource, "token_type": "Bearer"}
        return JSONResponse(given)

    return app
