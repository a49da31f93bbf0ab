from plungepool_toolkit.command import main

main()
