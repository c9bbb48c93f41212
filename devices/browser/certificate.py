"""A self-signed certificate for this machine's address, so that phones treat the page as a secure one.

It is made by the `cryptography` package where that is installed, else by the openssl program. It counts as its own authority (phones
install no other kind) but is constrained to its addresses: whoever gets hold of its key can pretend to be this machine, and nobody else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import ipaddress
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ...export.manifest import UserError

DAYS = 397
"""How long a certificate holds: phones refuse longer ones."""
RENEW_DAYS = 30
OPENSSL_S = 60.0


def certificate(folder: Path, addresses: Sequence[str]) -> tuple[Path, Path]:
    """The certificate for these IP addresses and its key, in `folder`: the ones that are there, until they are about to end.

    Raises UserError when neither cryptography nor openssl is there, or openssl fails.
    """
    name = "browser-" + hashlib.sha256("\n".join(addresses).encode()).hexdigest()[:12]
    made, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    if made.is_file() and key.is_file() and time.time() - made.stat().st_mtime < (DAYS - RENEW_DAYS) * 86400:
        return made, key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder, prefix="certificate-") as temporary:  # only this user may look into it
        new, new_key = Path(temporary) / "new.pem", Path(temporary) / "new-key.pem"
        if importlib.util.find_spec("cryptography") is not None:
            _by_cryptography(new, new_key, addresses)
        else:
            _by_openssl(new, new_key, addresses)
        new_key.chmod(0o600)
        os.replace(new_key, key)
        os.replace(new, made)
    return made, key


def _by_openssl(made: Path, key: Path, addresses: Sequence[str]) -> None:
    if shutil.which("openssl") is None:
        raise UserError(
            "https needs a certificate, and neither the cryptography package nor the openssl program is here",
            hint="pip install cryptography",
        )
    ips = [ipaddress.ip_address(address) for address in addresses]
    names = ",".join(["DNS:localhost", *(f"IP:{ip}" for ip in ips)])
    allowed = ",".join(
        [
            "permitted;DNS:localhost",
            *(f"permitted;IP:{ip}/{'255.255.255.255' if ip.version == 4 else 'ffff:' * 7 + 'ffff'}" for ip in ips),
        ]
    )
    extensions = (
        f"subjectAltName={names}",
        f"nameConstraints=critical,{allowed}",
        "basicConstraints=critical,CA:TRUE,pathlen:0",
        "keyUsage=critical,digitalSignature,keyCertSign",
        "extendedKeyUsage=serverAuth",
    )
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]
    command += [
        "-days",
        str(DAYS),
        "-subj",
        "/CN=trimtab on this network",
        "-keyout",
        str(key),
        "-out",
        str(made),
        "-config",
        os.devnull,
    ]
    for extension in extensions:
        command += ["-addext", extension]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", timeout=OPENSSL_S)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"openssl was not done within {OPENSSL_S:.0f} s", hint="pip install cryptography", exit_code=1
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise UserError(f"openssl made no certificate: {last}", hint="pip install cryptography", exit_code=1)


def _by_cryptography(made: Path, key: Path, addresses: Sequence[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trimtab on this network")])
    ips = [ipaddress.ip_address(address) for address in addresses]
    allowed: list[x509.GeneralName] = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_network(ip)) for ip in ips)]
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), *(x509.IPAddress(ip) for ip in ips)]
    use = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(subject, subject, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a phone's clock may be behind
        .not_valid_after(now + timedelta(days=DAYS) - timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.NameConstraints(permitted_subtrees=allowed, excluded_subtrees=None), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **use), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    made.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
