from .tails import completed
from .verification import Verification, checked_images, verify, verify_container

__all__ = ["Verification", "checked_images", "completed", "verify", "verify_container"]
