from .verification import Verification, verify, verify_container

__all__ = ["Verification", "verify", "verify_container"]
