"""What is done with trees and checkpoints from outside; nothing imports these."""
