"""The arm: Koch driver and bus, cameras, joint calibration, simulated arm and bus emulator."""
