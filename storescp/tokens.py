"""JSON Web Tokens (RFC 7519) as proof of who a user is. Reads its key once; no Twisted.

What belongs here: which tokens are believed. The key decides by which algorithms one may be signed: never the token.
"""

from __future__ import annotations

import os
from types import ModuleType

from storescp.config_file import ConfigError

#: Far beyond any key.
_MAX_KEY_FILE = 65536

# RFC 7518 §3: a secret has at least the length of its digest, in bytes; RSA at least 2048 bits.
_SECRETS = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_BITS = 2048
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

_EXPECTED = (
    f"a public key in PEM (RSA of at least {_RSA_BITS} bits, P-256, P-384, P-521, Ed25519)"
    f" or a secret of at least {_SECRETS['HS256']} bytes"
)


class InvalidToken(Exception):
    """A token that is not believed. str() says why, and nothing of the token."""


class TokenVerifier:
    """Believes tokens signed with the key in *file*: for *audience* and from *issuer*, where these are given.

    Raises ConfigError.
    """

    def __init__(self, file: os.PathLike[str], audience: str | None, issuer: str | None) -> None:
        self._jwt = _package()
        self._audience = audience
        self._issuer = issuer
        try:
            with open(file, "rb") as stream:
                content = stream.read(_MAX_KEY_FILE)
        except OSError as error:
            raise ConfigError(
                f"jwt-key: expected a readable file, got {str(file)!r}: {error.strerror}"
            ) from None
        self._key, self.algorithms = _public_key(content) if b"-----BEGIN" in content else _secret(content)
        if not self.algorithms:
            raise ConfigError(f"jwt-key: expected {_EXPECTED}, got something else in {str(file)!r}")

    def user(self, token: bytes) -> str:
        """The subject of *token*, which is its user. Raises InvalidToken."""
        jwt = self._jwt
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=self.algorithms,
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["exp", "sub"]},
            )
        # Not all of PyJWT's own words: some have a part of the token in them.
        except jwt.ExpiredSignatureError:
            why = "the token has expired"
        except jwt.ImmatureSignatureError:
            why = "the token is not valid yet"
        except jwt.InvalidAudienceError:
            why = "the token is for another audience"
        except jwt.InvalidIssuerError:
            why = "the token is from another issuer"
        except jwt.MissingRequiredClaimError as error:
            why = f"the token lacks {error.claim!r}"
        except jwt.InvalidAlgorithmError:
            why = "the token is signed by an algorithm that is not for our key"
        except jwt.InvalidSignatureError:
            why = "the token is not signed with our key"
        except jwt.PyJWTError:
            why = "this is no token"
        else:
            user = claims["sub"]
            if isinstance(user, str) and user:
                return user
            why = "the token names nobody"
        raise InvalidToken(why) from None


def _package() -> ModuleType:
    try:
        import jwt
    except ImportError:
        raise ConfigError(
            "jwt-key: expected PyJWT to be installed (pip install 'storescp[jwt]'), got no such package"
        ) from None
    return jwt


def _secret(content: bytes) -> tuple[object, list[str]]:
    secret = content.strip()
    return secret, [name for name, length in _SECRETS.items() if len(secret) >= length]


def _public_key(content: bytes) -> tuple[object, list[str]]:
    """The key and the algorithms that go with it: none if it is no such key."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise ConfigError(
            "jwt-key: expected cryptography to be installed (pip install 'storescp[jwt]'), got no such package"
        ) from None
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        return None, []
    algorithms: list[str] = []
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS:
        algorithms += _RSA
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        algorithms.append(_CURVES[key.curve.name])
    elif isinstance(key, ed25519.Ed25519PublicKey):
        algorithms.append("EdDSA")
    return key, algorithms
